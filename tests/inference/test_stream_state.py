"""A stream goes on in another process with the same bytes, or says why it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from tests.helpers import chunk_plans, random_latents, random_vae, random_video, small_config, small_configs
from wan_vae import DecodeStream, EncodeStream, UserError, VAEConfig, WanVAE
from wan_vae.inference.tiling import TiledHalo, Tiling

Stream = EncodeStream | DecodeStream


def resumed(stream: Stream, vae: WanVAE, **arguments: int) -> Stream:
    other = type(stream)(vae, **arguments)
    other.load_state_dict(load(save(stream.state_dict())))
    return other


def begun(vae: WanVAE, frames: int = 7) -> EncodeStream:
    stream = EncodeStream(vae)
    stream.push(random_video(frames, 4, 8))
    return stream


@given(
    st.data(),
    small_configs(),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(1, 3),
)
def test_a_resumed_stream_gives_the_same_bytes(
    data: st.DataObject, config: VAEConfig, latents: int, dtype: torch.dtype, per_pass: int
) -> None:
    vae, side = random_vae(config, dtype), config.spatial_compression
    video = random_video(1 + config.temporal_compression * (latents - 1), side, 2 * side, dtype=dtype)
    final = random_latents(config, latents, 2, 3, dtype=dtype)
    for kind, clip in ((EncodeStream, video), (DecodeStream, final)):
        chunks = clip.split(data.draw(chunk_plans(clip.shape[2])), dim=2)
        saved = data.draw(st.integers(0, len(chunks)))
        stream = kind(vae, latents_per_pass=per_pass)
        for chunk in chunks[:saved]:
            stream.push(chunk)
        other = resumed(stream, vae, latents_per_pass=per_pass)
        assert (other.position, other.missing) == (stream.position, stream.missing)
        for chunk in chunks[saved:]:
            expected, found = stream.push(chunk), other.push(chunk)
            assert (found is None) == (expected is None)
            assert found is None or torch.equal(found, expected)
        stream.flush()
        other.flush()


@pytest.mark.slow
@given(st.data(), small_configs(), st.booleans())
def test_what_tiles_remember_moves_along(data: st.DataObject, config: VAEConfig, encodes: bool) -> None:
    vae, side = random_vae(config, torch.float32), config.spatial_compression
    half, unit = (vae.encoder, config.temporal_compression) if encodes else (vae.decoder, 1)
    first = data.draw(st.integers(0, len(half.local_stages())))
    tiling = Tiling(2, data.draw(st.integers(1, 3)), first, data.draw(st.integers(first, len(half.local_stages()))))
    stream = (EncodeStream if encodes else DecodeStream)(vae, tiling=tiling)
    if encodes:
        clip = random_video(1 + 2 * unit, 2 * side, 3 * side, dtype=torch.float32)
    else:
        clip = random_latents(config, 3, 2, 3, dtype=torch.float32)
    saved = data.draw(st.integers(1, clip.shape[2] - 1))
    stream.push(clip[:, :, :saved])
    assert isinstance(stream._stream._runner.halo, TiledHalo)
    other = resumed(stream, vae)
    assert torch.equal(other.push(clip[:, :, saved:]), stream.push(clip[:, :, saved:]))


_GO_ON = """
import sys
from safetensors.torch import load_file, save_file
import torch
from tests.helpers import random_vae, random_video, small_config
from wan_vae import EncodeStream
from wan_vae.ops.cpu.build import build_kernels

build_kernels()
stream = EncodeStream(random_vae(small_config(), getattr(torch, sys.argv[2])))
stream.load_state_dict(load_file(sys.argv[1] + "/state"))
video = random_video(13, 4, 8, dtype=getattr(torch, sys.argv[2]))
save_file({"rest": stream.push(video[:, :, stream.position :])}, sys.argv[1] + "/rest")
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_process_goes_on(tmp_path: Path, dtype: str) -> None:
    vae = random_vae(small_config(), getattr(torch, dtype))
    video = random_video(13, 4, 8, dtype=getattr(torch, dtype))
    stream = EncodeStream(vae)
    stream.push(video[:, :, :6])
    save_file(stream.state_dict(), tmp_path / "state")
    subprocess.run([sys.executable, "-c", _GO_ON, str(tmp_path), dtype], check=True, cwd=Path(__file__).parents[2])
    assert torch.equal(load_file(tmp_path / "rest")["rest"], stream.push(video[:, :, 6:]))


def test_entries_are_called_by_the_names_of_layers() -> None:
    vae = random_vae(small_config())
    state = begun(vae, 8).state_dict()
    layers = {name.removeprefix("halo.") for name in state if name.startswith("halo.")}
    assert layers <= dict(vae.named_modules()).keys()
    assert "encoder.conv_in" in layers
    assert state["position"].item() == 8
    assert state["waiting"].shape == (1, 3, 1, 4, 8)
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_a_state_stays_as_it_is_while_the_stream_goes_on() -> None:
    stream = begun(random_vae(small_config()))
    state = stream.state_dict()
    copy = {name: tensor.clone() for name, tensor in state.items()}
    stream.push(random_video(8, 4, 8, seed=3))
    assert all(torch.equal(state[name], copy[name]) for name in copy)


def test_two_streams_go_on_from_one_state() -> None:
    vae = random_vae(small_config())
    stream = begun(vae)
    state = stream.state_dict()
    others = [EncodeStream(vae), EncodeStream(vae)]
    for other in others:
        other.load_state_dict(state)
    rest = random_video(4, 4, 8, seed=3)
    expected = stream.push(rest)
    assert all(torch.equal(other.push(rest), expected) for other in others)


def test_a_stream_that_has_begun_takes_no_state() -> None:
    vae = random_vae(small_config())
    with pytest.raises(UserError, match="has begun takes no state; load it into a new one"):
        begun(vae).load_state_dict(begun(vae).state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (random_vae(small_config(block="dense")), "whose block is wan and not dense; take that model"),
        (random_vae(small_config(), seed=1), "same config but other weights or another dtype"),
        (random_vae(small_config(), torch.float32), "same config but other weights or another dtype"),
    ],
)
def test_another_model_does_not_go_on(other: WanVAE, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EncodeStream(other).load_state_dict(begun(random_vae(small_config())).state_dict())


def test_another_direction_does_not_go_on() -> None:
    vae = random_vae(small_config())
    with pytest.raises(UserError, match="of a stream that is to encode; load it into a new EncodeStream"):
        DecodeStream(vae).load_state_dict(begun(vae).state_dict())


def changed(state: dict[str, Tensor], name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    rest = {key: value for key, value in state.items() if key != name}
    return rest if tensor is None else rest | {name: tensor}


@pytest.mark.parametrize("name", ["stream", "weights", "position", "waiting", "halo.encoder.conv_in"])
def test_a_missing_entry_is_named(name: str) -> None:
    vae = random_vae(small_config())
    with pytest.raises(UserError, match=f"no entry '{name}'; take all that"):
        EncodeStream(vae).load_state_dict(changed(begun(vae).state_dict(), name, None))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("halo.encoder.conv_in", torch.zeros(1, 3, 2, 4, 4), r"\(1, 3, 2, 4, 4\) of torch.float32 and not \(1, 3, 2, "),
        ("waiting", torch.zeros(1, 3, 0, 4, 8), r"\(1, 3, 0, 4, 8\) of torch.float32 and not \(1, 3, 0, 4, 8\) of "),
        ("position", torch.tensor(8), r"damaged: of 8 frames, 0 wait"),
        ("position", torch.tensor(-1), r"damaged: of -1 frames, 0 wait"),
        ("more", torch.tensor(8), r"has an entry 'more' that its stream did not have"),
        ("stream", torch.zeros(9, dtype=torch.uint8), "entry 'stream' is damaged"),
        ("stream", torch.zeros(9), "entry 'stream' is damaged"),
    ],
)
def test_a_changed_entry_is_named(name: str, tensor: Tensor, message: str) -> None:
    vae = random_vae(small_config())
    with pytest.raises(UserError, match=message):
        EncodeStream(vae).load_state_dict(changed(begun(vae).state_dict(), name, tensor))


def test_a_refused_state_leaves_the_stream_new() -> None:
    vae = random_vae(small_config())
    stream, video = EncodeStream(vae), random_video(5, 4, 8)
    with pytest.raises(UserError):
        stream.load_state_dict({})
    assert torch.equal(stream.push(video), vae.encode(video))
