import contextlib
import dataclasses
import io
import os
import random
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.helpers import chunk_plans, small_config
from wan_vae.errors import LatentsError, UserError
from wan_vae.io import Color, LatentsFile, LatentsInfo, LatentsWriter, load_latents, save_latents


def info(latents: torch.Tensor) -> LatentsInfo:
    return LatentsInfo(
        frames=2 * latents.shape[2] - 1,
        width=2 * latents.shape[4] - 1,
        height=2 * latents.shape[3],
        fps=Fraction(30000, 1001),
        pixel_aspect=Fraction(16, 15),
        color=Color("bt709", True, 1, 13),
        config=small_config(),
        checkpoint="0123",
    )


@settings(max_examples=20)
@given(data=st.data(), frames=st.integers(1, 6), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_posterior_written_in_chunks_is_read_in_chunks(
    data: st.DataObject, frames: int, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("latents") / "l.safetensors"
    latents, logvar = torch.randn(2, 1, 3, frames, 4, 5).to(dtype)
    plan = [count for count in data.draw(chunk_plans(frames)) if count > 0]
    with LatentsWriter(path) as writer:
        for mean, variance in zip(latents.split(plan, dim=2), logvar.split(plan, dim=2), strict=True):
            writer.write_posterior(mean, variance)
        assert writer.finish(info(latents)) == tuple(latents.shape)
    assert torch.equal(load_file(path)["latents"], latents)
    assert torch.equal(load_file(path)["logvar"], logvar)
    read = LatentsFile(path)
    assert read.has_logvar
    assert torch.equal(torch.cat(list(read.chunks(2)), dim=2), latents)
    assert torch.equal(torch.cat(list(read.logvar_chunks(2)), dim=2), logvar)
    assert torch.equal(load_latents(path)[0], latents)


def test_log_variance_that_is_missing_or_of_other_latents_is_refused(tmp_path: Path) -> None:
    path, latents = tmp_path / "l.safetensors", torch.randn(1, 3, 2, 4, 5)
    save_latents(path, latents, info(latents))
    assert not LatentsFile(path).has_logvar
    with pytest.raises(LatentsError, match=r"l\.safetensors has no log-variance; encode with --posterior"):
        LatentsFile(path).logvar_chunks(1)
    for logvar in (latents[:, :, :1], latents.half()):
        tensors = {"latents": latents, "logvar": logvar.contiguous()}
        safetensors.torch.save_file(tensors, path, info(latents).to_metadata())
        with pytest.raises(LatentsError, match=r"cannot be used: its latents are .* but its logvar is"):
            LatentsFile(path)
    with pytest.raises(LatentsError, match="but their log-variance is"), LatentsWriter(path) as writer:
        writer.write_posterior(latents, latents[:, :, :1])


@given(
    data=st.data(),
    frames=st.integers(1, 6),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_latents_written_in_chunks_are_read_in_chunks(
    data: st.DataObject,
    frames: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("latents") / "l.safetensors"
    latents = torch.randn(1, 3, frames, height, width).to(dtype)
    plan = [count for count in data.draw(chunk_plans(frames)) if count > 0]
    with LatentsWriter(path) as writer:
        for chunk in latents.split(plan, dim=2):
            writer.write(chunk)
        assert writer.finish(info(latents)) == tuple(latents.shape)
    # The library's own reader sees the same file.
    assert torch.equal(load_file(path)["latents"], latents)
    read = LatentsFile(path)
    assert read.info == info(latents)
    assert torch.equal(torch.cat(list(read.chunks(data.draw(st.integers(1, 7)))), dim=2), latents)
    assert [item.name for item in path.parent.iterdir()] == ["l.safetensors"]


def test_latents_writer_after_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with LatentsWriter(tmp_path / "l.safetensors") as writer:
            writer.write(torch.zeros(1, 3, 1, 2, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(2, 3, 1, 2, 2), r"a batch of 2 clips; a file holds one clip, \(1, z, n, h, w\)"),
        (torch.zeros(3, 1, 2, 2), r"of shape \(3, 1, 2, 2\); a file holds one clip"),
        (torch.zeros(1, 3, 1, 2, 2, dtype=torch.int32), "torch.int32; convert them to one of float64, float32"),
        (torch.full((1, 3, 1, 2, 2), torch.inf), "NaN or infinite latents from latent frame 0"),
        (torch.zeros(1, 3, 1, 2, 4), r"its latents are \(1, 3, 1, 2, 4\), where 1 frames of 3x4 have"),
    ],
)
def test_save_latents_of_a_wrong_kind_is_refused(tmp_path: Path, latents: torch.Tensor, message: str) -> None:
    with pytest.raises(LatentsError, match=f"l.safetensors was not written: .*{message}"):
        save_latents(tmp_path / "l.safetensors", latents, info(torch.zeros(1, 3, 1, 2, 2)))
    assert not any(tmp_path.iterdir())


def test_latents_writer_refuses_chunks_that_differ_and_no_chunks(tmp_path: Path) -> None:
    latents = torch.zeros(1, 3, 1, 2, 2)
    with LatentsWriter(io.BytesIO()) as writer:
        writer.write(latents)
        with pytest.raises(LatentsError, match="all must be alike"):
            writer.write(latents.double())
        with pytest.raises(LatentsError, match=r"of shape \(1, 3, 0, 2, 2\), which holds none; leave empty chunks out"):
            writer.write(latents[:, :, :0])
    with pytest.raises(LatentsError, match="no latents"), LatentsWriter(tmp_path / "l.safetensors") as writer:
        writer.finish(info(latents))
    assert not any(tmp_path.iterdir())


def test_latents_writer_left_without_finish_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(LatentsError, match=r"l\.safetensors was not written: finish was not called; call it with"),
        LatentsWriter(tmp_path / "l.safetensors") as writer,
    ):
        writer.write(torch.zeros(1, 3, 1, 2, 2))
    assert not any(tmp_path.iterdir())


def test_saved_latents_are_loaded_from_str_path_and_file_object(tmp_path: Path) -> None:
    latents = torch.randn(1, 3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    target = tmp_path / "new" / "l.safetensors"
    save_latents(str(target), latents, info(latents))
    with pytest.raises(UserError, match=r"exists; pass --overwrite \(in Python, overwrite=True\)"):
        save_latents(target, latents, info(latents))
    save_latents(target, latents, info(latents), overwrite=True)
    buffer = io.BytesIO()
    save_latents(buffer, latents, info(latents))
    assert buffer.getvalue() == target.read_bytes()
    buffer.seek(0)
    for source in (str(target), target, buffer):
        loaded, loaded_info = load_latents(source)
        assert torch.equal(loaded, latents)
        assert loaded_info == info(latents)


def test_load_latents_from_another_file_object_is_refused() -> None:
    for content in (b"", b"no latents at all", safetensors.torch.save({"latents": torch.zeros(1)})):
        with pytest.raises(LatentsError, match="the file object is no latents file of this package"):
            load_latents(io.BytesIO(content))
    metadata = info(torch.zeros(1, 3, 1, 2, 2)).to_metadata()
    for tensors, message in (
        ({"other": torch.zeros(1)}, "it has no tensor 'latents'"),
        ({"latents": torch.zeros(1, 3, 2, 2, 2)}, r"its latents are \(1, 3, 2, 2, 2\)"),
        ({"latents": torch.full((1, 3, 1, 2, 2), torch.nan)}, "holds NaN"),
    ):
        with pytest.raises(LatentsError, match=message):
            load_latents(io.BytesIO(safetensors.torch.save(tensors, metadata)))


def stored_with(**changes: str) -> bytes:
    latents = torch.zeros(1, 3, 1, 2, 2)
    return safetensors.torch.save({"latents": latents}, info(latents).to_metadata() | changes)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: text} for name in ("fps", "pixel_aspect") for text in
          ("1e999999999", "1e-999999999", "1/0", "0", "-1/3", "1/3.0", "nan", "٣", " 1", "1_0", "3000000000/2999999999",
           "1/70000", "70000", "1/00", "9" * 5000)),
        *({name: text} for name in ("frames", "width", "height") for text in
          ("1000000000000", "0", "-3", "1.0", "1e3", "٣", "9" * 5000)),
        *({"color": text} for text in
          ("[", "[" * 100000, "3", "null", '{"matrix": "bt709"}', '{"matrix": [], "full_range": true}',
           '{"matrix": "bt709", "full_range": 1}', '{"matrix": "bt709", "full_range": true, "primaries": NaN}',
           '{"matrix": "bt709", "full_range": true, "primaries": true}', '{"matrix": "x", "full_range": true}',
           '{"matrix": "bt709", "full_range": true, "transfer": 256}',
           '{"matrix": "rgb", "full_range": true, "x": 1}', "{}")),
        *({"config": text} for text in ("{}", "[" * 100000, "3", '{"latent_channels": ' + "9" * 5000 + "}")),
    ],
)  # fmt: skip
def test_load_latents_with_damaged_metadata_gets_a_sentence_at_once(changes: dict[str, str]) -> None:
    begun = time.process_time()
    with pytest.raises(
        LatentsError, match=r"the file object cannot be used: (its metadata is damaged|its latents are)"
    ):
        load_latents(io.BytesIO(stored_with(**changes)))
    assert time.process_time() - begun < 1


def test_load_latents_of_another_dtype_is_refused() -> None:
    latents = torch.zeros(1, 3, 1, 2, 2)
    for dtype in (torch.float8_e4m3fn, torch.int32):
        content = safetensors.torch.save({"latents": latents.to(dtype)}, info(latents).to_metadata())
        with pytest.raises(LatentsError, match=r"its latents are (F8_E4M3|I32), not one of F64, F32, BF16, F16"):
            load_latents(io.BytesIO(content))


def test_latents_info_takes_rates_as_numbers_and_refuses_other_types() -> None:
    color, config = Color("bt709", False), small_config()
    made = LatentsInfo(5, 8, 8, 29.97002997, 1, color, config, "0123")  # type: ignore[arg-type]
    assert made.fps == Fraction(30000, 1001)
    assert LatentsInfo.from_metadata(made.to_metadata()) == made
    for changes, message in (
        ({"frames": 4.5}, r"frames is 4\.5; it must be a whole number"),
        ({"checkpoint": 5}, "checkpoint is 5; it must be a str"),
        ({"config": None}, "config is None; it must be a VAEConfig"),
        ({"color": "bt709"}, "color is 'bt709'; it must be a Color"),
        ({"fps": "24"}, "'24' frames a second is not possible"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(made, **changes)


@settings(max_examples=50)
@given(
    numbers=st.tuples(*[st.integers(1, 2**31 - 1)] * 3) | st.tuples(*[st.integers(-1, 2**32)] * 3),
    ratios=st.tuples(*[st.fractions(Fraction(1, 2**16), 2**16, max_denominator=2**16)] * 2)
    | st.tuples(*[st.fractions()] * 2),
    codes=st.tuples(*[st.integers(0, 255)] * 2),
)
def test_latents_info_that_can_be_made_is_read_as_it_was_written(
    numbers: tuple[int, int, int], ratios: tuple[Fraction, Fraction], codes: tuple[int, int]
) -> None:
    try:
        made = LatentsInfo(*numbers, *ratios, Color("bt709", True, *codes), small_config(), "0123")
    except LatentsError:
        return
    assert LatentsInfo.from_metadata(made.to_metadata()) == made


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def replace(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.write_bytes(path.with_suffix(".old").read_bytes())


@pytest.mark.parametrize("spoil", [cut, overwrite, replace])
def test_chunks_of_a_file_that_changes_get_a_sentence(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    path, latents = tmp_path / "l.safetensors", torch.randn(1, 3, 40, 5, 5)
    save_latents(path, latents, info(latents))
    os.utime(path, (1, 1))
    chunks = LatentsFile(path).chunks(10)
    opened = LatentsFile(path)
    next(chunks)
    spoil(path)
    with pytest.raises(LatentsError, match=r"l\.safetensors was changed while it was read; start again"):
        list(opened.chunks(10))
    if spoil is not replace:  # the file that was opened is still there
        with pytest.raises(LatentsError, match="was changed while it was read"):
            list(chunks)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_latents_file_of_no_regular_file_gets_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for path in (tmp_path / "pipe", tmp_path / "circle", tmp_path, tmp_path / "-", tmp_path / ("x" * 300)):
        with pytest.raises(LatentsError, match=r"is not a file|cannot be read"):
            LatentsFile(path)


@pytest.mark.parametrize("seed", range(3))
def test_load_latents_of_flipped_bits_and_cuts_raises_nothing_else(seed: int, tmp_path: Path) -> None:
    path, latents, chance = tmp_path / "l.safetensors", torch.randn(1, 3, 4, 2, 2), random.Random(seed)
    save_latents(path, latents, info(latents))
    whole = path.read_bytes()
    for attempt in range(100):
        content = bytearray(whole)
        if attempt % 5 == 0:
            content = content[: chance.randrange(len(content))]
        else:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        with contextlib.suppress(LatentsError):
            load_latents(path)
