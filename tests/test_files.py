"""Files encoded, decoded and reconstructed by one call of the library."""

from collections.abc import Callable
from fractions import Fraction
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.running import read_clip, write_clip
from tests.helpers import random_vae, small_config
from wan_vae import AlphaPair, LatentsError, UserError, WanVAE, decode_file, encode_file, reconstruct_file
from wan_vae.cli.encode import encode
from wan_vae.cli.reconstruct import reconstruct
from wan_vae.errors import ClipError
from wan_vae.io import create_clip, frames_to_tensor, open_clip, tensor_to_frames
from wan_vae.io.color import over_black
from wan_vae.io.latents_file import LatentsFile


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "vae.safetensors"
    random_vae(small_config(), torch.float32).save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", frames=6, width=19, height=13, fps=Fraction(25))


@pytest.fixture(scope="module")
def latents(checkpoint: Path, clip: Path) -> Path:
    path = clip.with_name("latents.safetensors")
    encode_file(clip, path, checkpoint)
    return path


def test_encode_file_result_describes_the_latents(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    vae = WanVAE.from_pretrained(checkpoint)
    out = tmp_path / "out.safetensors"
    result = encode_file(str(clip), str(out), vae, size=(16, 12), frames=(1, 5), fps=12.5)
    info = LatentsFile(out).info
    assert (result.output, result.shape, result.frames) == (out, (1, 3, 2, 6, 8), 2)
    assert (result.width, result.height, result.fps) == (info.width, info.height, info.fps) == (16, 12, Fraction(25, 2))
    assert info.checkpoint == vae.digest()
    assert result.frames_per_second == result.frames / result.seconds > 0


@pytest.mark.parametrize(("command", "function"), [(encode, encode_file), (reconstruct, reconstruct_file)])
def test_command_and_function_take_the_same_options(command: Callable[..., None], function: Callable[..., Any]) -> None:
    machine, own = (
        {"checkpoint", "device", "dtype", "checkpoint_values", "shards", "threads", "as_json"},
        {"vae", "progress", "load"},
    )
    options = set(signature(command).parameters)
    if command is encode:
        options = options - {"paths"} | {"clip", "latents"}  # it takes several clips
    assert options - machine == set(signature(function).parameters) - own


def test_encode_file_of_a_length_takes_that_many_frames_at_the_rate(
    checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    result = encode_file(clip, tmp_path / "a.safetensors", checkpoint, frames=(1, None), length=10, fps=50)
    assert (result.frames, result.fps, LatentsFile(result.output).info.frames) == (10, 50, 10)


@pytest.mark.parametrize("memory", ["auto", "whole"])
def test_encode_file_with_the_posterior_keeps_the_latents_and_adds_the_log_variance(
    checkpoint: Path, clip: Path, tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, plain, both = WanVAE.from_pretrained(checkpoint), tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    if memory == "whole":
        monkeypatch.setattr("wan_vae.chunks._stream_refusal", lambda *_: UserError("no stream"))
    budget = "4GiB" if memory == "whole" else "auto"
    encode_file(clip, plain, vae, memory=budget)
    result = encode_file(clip, both, vae, posterior=True, memory=budget)
    stored = load_file(both)
    assert torch.equal(stored["latents"], load_file(plain)["latents"])
    assert result.shape == tuple(stored["logvar"].shape) == tuple(stored["latents"].shape)
    with open_clip(clip) as source:
        padded = np.pad(np.concatenate(list(source.chunks(6))), ((0, 1), (0, 1), (0, 1), (0, 0)), mode="edge")
    posterior = vae.posterior(frames_to_tensor(padded))
    std = torch.tensor(vae.config.latent_std).view(1, -1, 1, 1, 1)
    torch.testing.assert_close(stored["logvar"], posterior.logvar - 2 * std.log())
    torch.testing.assert_close(torch.exp(stored["logvar"] / 2), posterior.std / std)
    assert not LatentsFile(plain).has_logvar
    assert LatentsFile(both).has_logvar
    for path in (plain, both):
        decode_file(path, path.with_suffix(".mkv"), vae, lossless=True)
    assert np.array_equal(read_clip(plain.with_suffix(".mkv")), read_clip(both.with_suffix(".mkv")))


def test_encode_file_refuses_the_posterior_where_it_has_no_place(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(LatentsError, match=r"a\.latent, a latent of ComfyUI, has no place for the log-variance"):
        encode_file(clip, tmp_path / "a.latent", checkpoint, posterior=True)
    shards: Any = SimpleNamespace(rank=0, config=small_config())
    with pytest.raises(UserError, match="Neither a tiny model nor one in shards gives"):
        encode_file(clip, tmp_path / "a.safetensors", shards, posterior=True)
    assert not list(tmp_path.iterdir())


def test_decode_file_of_a_model_or_its_path_gives_the_same_pixels(
    checkpoint: Path, latents: Path, tmp_path: Path
) -> None:
    by_path, by_model = tmp_path / "path.mkv", tmp_path / "model.mkv"
    decode_file(latents, by_path, str(checkpoint), lossless=True)
    result = decode_file(latents, by_model, WanVAE.from_pretrained(checkpoint), lossless=True)
    assert (result.output, result.frames, result.width, result.height, result.fps) == (by_model, 6, 19, 13, 25)
    assert np.array_equal(read_clip(by_path), read_clip(by_model))


def test_reconstruct_file_score_is_of_the_written_frames(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "out.mkv", tmp_path / "sheet.png"
    result = reconstruct_file(clip, out, checkpoint, contact_sheet=sheet, lossless=True)
    error = (read_clip(clip).astype(float) - read_clip(out)) ** 2
    assert result.score is not None
    assert result.score.psnr == pytest.approx(np.mean(10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))), abs=1e-4)
    assert (result.contact_sheet, result.side_by_side, sheet.exists()) == (sheet, None, True)


def test_load_is_called_after_the_input_was_opened(tmp_path: Path) -> None:
    def load(checkpoint: str | Path) -> WanVAE:
        pytest.fail("the clip does not exist")

    with pytest.raises(UserError, match="does not exist"):
        encode_file(tmp_path / "none.mp4", tmp_path / "out.safetensors", "nano", load=load)


CALLS: dict[str, Callable[..., Any]] = {
    "encode": lambda clip, latents, folder, vae, **options: encode_file(
        clip, folder / "out.safetensors", vae, **options
    ),
    "decode": lambda clip, latents, folder, vae, **options: decode_file(latents, folder / "out.mkv", vae, **options),
    "reconstruct": lambda clip, latents, folder, vae, **options: reconstruct_file(
        clip,
        folder / "out.mkv",
        vae,
        side_by_side=folder / "pairs.mkv",
        contact_sheet=folder / "sheet.png",
        **options,
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_progress_counts_from_nothing_to_all_frames(
    call: str, clip: Path, latents: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_vae.inference.chunk_size._MAX_LATENTS", 1)
    seen: list[tuple[int, int]] = []
    CALLS[call](clip, latents, tmp_path, checkpoint, progress=lambda done, total: seen.append((done, total)))
    done = [count for count, _ in seen]
    assert (done[0], done[-1], {total for _, total in seen}) == (0, 6, {6})
    assert done == sorted(done)
    assert len(done) > 2


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("first", [0, 1, 6])
def test_exception_of_progress_cancels_and_leaves_nothing(
    first: int, call: str, clip: Path, latents: Path, checkpoint: Path, tmp_path: Path
) -> None:
    class CancelledError(Exception): ...

    def cancel(done: int, total: int) -> None:
        if done >= first:
            raise CancelledError

    with pytest.raises(CancelledError):
        CALLS[call](clip, latents, tmp_path, checkpoint, progress=cancel)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("call", CALLS)
def test_existing_output_is_refused_without_overwrite(
    call: str, clip: Path, latents: Path, checkpoint: Path, tmp_path: Path
) -> None:
    CALLS[call](clip, latents, tmp_path, checkpoint)
    with pytest.raises(UserError, match="exists"):
        CALLS[call](clip, latents, tmp_path, checkpoint)
    CALLS[call](clip, latents, tmp_path, checkpoint, overwrite=True)


@pytest.mark.parametrize("call", CALLS)
def test_budget_that_is_too_small_is_refused(
    call: str, clip: Path, latents: Path, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"too little|does not fit"):
        CALLS[call](clip, latents, tmp_path, checkpoint, memory=10)
    assert not any(tmp_path.iterdir())


def test_encode_file_without_room_for_a_stream_encodes_the_whole_clip(
    checkpoint: Path, clip: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_vae.chunks._stream_refusal", lambda *arguments: UserError("no stream"))
    encode_file(clip, tmp_path / "whole.safetensors", checkpoint)
    decode_file(latents, tmp_path / "whole.mkv", checkpoint, lossless=True)
    monkeypatch.undo()
    decode_file(latents, tmp_path / "stream.mkv", checkpoint, lossless=True)
    torch.testing.assert_close(load_file(tmp_path / "whole.safetensors"), load_file(latents), rtol=1e-4, atol=1e-5)
    difference = read_clip(tmp_path / "whole.mkv").astype(int) - read_clip(tmp_path / "stream.mkv")
    assert np.abs(difference).max() <= 1


def test_decode_file_of_another_latent_space_is_refused(latents: Path, tmp_path: Path) -> None:
    vae = random_vae(small_config(latent_channels=2), torch.float32)
    with pytest.raises(LatentsError, match=r"cannot be decoded with the model, whose latent channels is 2 and not 3"):
        decode_file(latents, tmp_path / "out.mkv", vae)


def never_called(checkpoint: str | Path) -> WanVAE:
    raise AssertionError(checkpoint)


def test_output_that_cannot_hold_the_rate_is_refused_before_the_model_is_loaded(clip: Path, tmp_path: Path) -> None:
    fast = tmp_path / "fast.safetensors"
    encode_file(clip, fast, random_vae(small_config(), torch.float32), fps=1000)
    with pytest.raises(ClipError, match=r"out\.gif cannot hold 1000 frames a second"):
        decode_file(fast, tmp_path / "out.gif", "nano", load=never_called)
    out, pairs = tmp_path / "out.mkv", tmp_path / "pairs.gif"
    with pytest.raises(ClipError, match=r"pairs\.gif cannot hold 1000 frames a second"):
        reconstruct_file(clip, out, "nano", side_by_side=pairs, fps=1000, load=never_called)
    assert list(tmp_path.iterdir()) == [fast]


def transparent_pictures(count: int = 5) -> np.ndarray:
    pictures = np.random.default_rng(0).integers(0, 256, (count, 12, 16, 4), dtype=np.uint8)
    pictures[:, :6, :, 3] = 255
    return pictures


def frames_of(path: Path) -> np.ndarray:
    with open_clip(path, alpha=True) as clip:
        return np.concatenate(list(clip.chunks(8)))


def write_transparent(path: Path, pictures: np.ndarray) -> Path:
    with create_clip(path, fps=25, width=16, height=12, lossless=True, alpha=True) as writer:
        writer.write(pictures)
    return path


def test_clips_keep_alpha_through_a_model_that_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vae, pictures = random_vae(small_config(image_channels=4), torch.float32), transparent_pictures()
    clip = write_transparent(tmp_path / "clip.mkv", pictures)
    encode_file(clip, tmp_path / "z.safetensors", vae)
    latents = torch.cat(list(LatentsFile(tmp_path / "z.safetensors").chunks(8)), dim=2)
    expected = tensor_to_frames(vae.decode(latents))
    torch.testing.assert_close(latents, vae.encode(frames_to_tensor(pictures)))
    assert not caplog.records
    decode_file(tmp_path / "z.safetensors", tmp_path / "out.mkv", vae, lossless=True)
    assert np.array_equal(frames_of(tmp_path / "out.mkv"), expected)
    assert not caplog.records
    decode_file(tmp_path / "z.safetensors", tmp_path / "out.avi", vae, lossless=True)
    assert np.array_equal(frames_of(tmp_path / "out.avi")[..., :3], over_black(expected))
    (record,) = caplog.records
    assert "out.avi cannot keep alpha; these can: a folder, .mov" in record.message
    assert record.message.endswith("transparent pixels are laid over black.")


def test_reconstruct_file_with_alpha_writes_it_beside_the_source(tmp_path: Path) -> None:
    vae, pictures = random_vae(small_config(image_channels=4), torch.float32), transparent_pictures(1)
    clip, sheet = write_transparent(tmp_path / "a.png", pictures), tmp_path / "sheet.png"
    pair = tmp_path / "pair.png"
    result = reconstruct_file(clip, tmp_path / "out.png", vae, side_by_side=pair, contact_sheet=sheet)
    source, found = pictures[0].astype(float), frames_of(tmp_path / "out.png")[0].astype(float)
    assert result.score is not None
    assert result.score.psnr == pytest.approx(10 * np.log10(255**2 / ((source - found) ** 2).mean()), abs=1e-4)
    assert np.array_equal(frames_of(pair)[0][:, :16], pictures[0])
    assert np.array_equal(frames_of(pair)[0][:, -16:], found)


def test_two_models_decode_a_file_to_colors_and_alpha(checkpoint: Path, latents: Path, tmp_path: Path) -> None:
    color, alpha = WanVAE.from_pretrained(checkpoint), random_vae(small_config(), torch.float32, seed=1)
    result = decode_file(latents, tmp_path / "both.mkv", AlphaPair(color, alpha), lossless=True)
    assert (result.frames, result.width, result.height) == (6, 19, 13)
    for name, model in (("color", color), ("alpha", alpha)):
        decode_file(latents, tmp_path / f"{name}.mkv", model, lossless=True)
    both = frames_of(tmp_path / "both.mkv")
    assert np.array_equal(both[..., :3], frames_of(tmp_path / "color.mkv")[..., :3])
    painted = frames_of(tmp_path / "alpha.mkv")[..., :3].astype(float).mean(axis=-1)
    assert np.abs(both[..., 3] - painted).max() <= 1
    with pytest.raises(UserError, match="decodes only; leave out the one for alpha"):
        encode_file(tmp_path / "both.mkv", tmp_path / "z.safetensors", AlphaPair(color, alpha))
