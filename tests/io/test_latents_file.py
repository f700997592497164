import io
from fractions import Fraction
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
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
        with pytest.raises(LatentsError, match="the file object is no latents file"):
            load_latents(io.BytesIO(content))
    metadata = info(torch.zeros(1, 3, 1, 2, 2)).to_metadata()
    for tensors, message in (
        ({"other": torch.zeros(1)}, "it has no tensor 'latents'"),
        ({"latents": torch.zeros(1, 3, 2, 2, 2)}, r"its latents are \(1, 3, 2, 2, 2\)"),
        ({"latents": torch.full((1, 3, 1, 2, 2), torch.nan)}, "holds NaN"),
    ):
        with pytest.raises(LatentsError, match=message):
            load_latents(io.BytesIO(safetensors.torch.save(tensors, metadata)))
