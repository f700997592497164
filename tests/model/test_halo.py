"""Chunking never changes the result, and nothing depends on what comes later."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import (
    chunk_plans,
    random_latents,
    random_vae,
    random_video,
    relative_difference,
    small_config,
    small_configs,
)
from wan_vae import UserError, VAEConfig, WanVAE
from wan_vae.config import BLOCK_KINDS
from wan_vae.model.halo import CachedHalo, Halo
from wan_vae.model.layers import CausalConv3d


def fitting_video(config: VAEConfig, latents: int) -> torch.Tensor:
    side = config.spatial_compression
    return random_video(1 + config.temporal_compression * (latents - 1), 2 * side, 3 * side)


@settings(max_examples=50)
@given(st.data(), small_configs(), st.integers(1, 5))
def test_any_chunks_encode_like_the_whole_clip(data: st.DataObject, config: VAEConfig, latents: int) -> None:
    vae, video = random_vae(config), fitting_video(config, latents)
    plan = data.draw(chunk_plans(video.shape[2]))
    per_pass = data.draw(st.integers(1, 3))
    streamed = torch.cat(list(vae.encode_stream(video.split(plan, dim=2), latents_per_pass=per_pass)), dim=2)
    whole = vae.normalize(vae.moments(video, Halo()).chunk(2, dim=1)[0])
    assert relative_difference(streamed, whole) <= 1e-10


@settings(max_examples=50)
@given(st.data(), small_configs(), st.integers(1, 5))
def test_any_chunks_decode_like_the_whole_clip(data: st.DataObject, config: VAEConfig, latents: int) -> None:
    vae, final = random_vae(config), random_latents(config, latents, 2, 3)
    plan = data.draw(chunk_plans(latents))
    per_pass = data.draw(st.integers(1, 3))
    streamed = torch.cat(list(vae.decode_stream(final.split(plan, dim=2), latents_per_pass=per_pass)), dim=2)
    whole = vae.pixels(vae.denormalize(final), Halo())
    assert whole.abs().max() < 1, "the clamp would hide differences"
    assert relative_difference(streamed, whole) <= 1e-10


@pytest.mark.parametrize("block", BLOCK_KINDS)
@given(st.data())
def test_passes_may_be_of_any_size(block: str, data: st.DataObject) -> None:
    # Streams take the first frame alone; the halo itself does not ask for that.
    vae = random_vae(small_config(block=block))
    groups = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    plan = [1 + 2 * (groups[0] - 1), *(2 * group for group in groups[1:])]
    video = random_video(sum(plan), 4, 6)
    halo, parts = CachedHalo(), []
    for chunk in video.split(plan, dim=2):
        parts.append(vae.moments(chunk, halo))
        halo.advance()
    assert relative_difference(torch.cat(parts, dim=2), vae.moments(video, Halo())) <= 1e-10


@given(small_configs(), st.integers(1, 4), st.integers(1, 4))
def test_latents_depend_on_no_later_frame(config: VAEConfig, kept: int, more: int) -> None:
    vae, video = random_vae(config), fitting_video(config, kept + more)
    frames = 1 + config.temporal_compression * (kept - 1)
    changed = video.clone()
    changed[:, :, frames:] = random_video(video.shape[2] - frames, *video.shape[3:], seed=7)
    before, after = vae.moments(video, Halo()), vae.moments(changed, Halo())
    assert torch.equal(before[:, :, :kept], after[:, :, :kept])


@given(small_configs(), st.integers(1, 4), st.integers(1, 4))
def test_frames_depend_on_no_later_latent(config: VAEConfig, kept: int, more: int) -> None:
    vae, latents = random_vae(config), random_latents(config, kept + more, 2, 3)
    frames = 1 + config.temporal_compression * (kept - 1)
    changed = latents.clone()
    changed[:, :, kept:] += 1
    before, after = vae.pixels(latents, Halo()), vae.pixels(changed, Halo())
    assert torch.equal(before[:, :, :frames], after[:, :, :frames])


@pytest.mark.parametrize("block", BLOCK_KINDS)
def test_later_frames_and_latents_depend_on_earlier_ones(block: str) -> None:
    vae = random_vae(small_config(block=block))
    video, latents = random_video(5, 4, 6), random_latents(vae.config, 3, 2, 3)
    changed = video.clone()
    changed[:, :, :3] *= -1
    assert not torch.equal(vae.encode(video)[:, :, 2], vae.encode(changed)[:, :, 2])
    changed = latents.clone()
    changed[:, :, :2] += 1
    assert not torch.equal(vae.decode(latents)[:, :, 4], vae.decode(changed)[:, :, 4])


def test_interleaved_streams_do_not_disturb_each_other() -> None:
    vae = random_vae(small_config())
    clips = [random_video(9, 4, 6, seed=seed) for seed in range(2)]
    streams = [vae.encode_stream(clip.split(2, dim=2)) for clip in clips]
    parts: list[list[torch.Tensor]] = [[], []]
    for first, second in zip(*streams, strict=True):
        parts[0].append(first)
        parts[1].append(second)
    for clip, part in zip(clips, parts, strict=True):
        alone = torch.cat(list(vae.encode_stream([clip], latents_per_pass=1)), dim=2)  # as many a pass, the same bits
        assert torch.equal(torch.cat(part, dim=2), alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_stream_remembers_frames_and_not_whole_chunks(dtype: torch.dtype, with_gradients: bool) -> None:
    vae, halo = random_vae(small_config(), dtype), CachedHalo()
    sizes = []
    for chunk in random_video(17, 4, 6, dtype=dtype).split([1, 2, 2, 12], dim=2):
        with torch.set_grad_enabled(with_gradients):
            vae.moments(chunk, halo)
        halo.advance()
        pieces = [piece for past in halo._cache.values() for piece in past]
        sizes.append(sum(piece.untyped_storage().nbytes() for piece in pieces))
        assert all(region.allocated == 0 for region in halo.workspace._regions[False])
    assert sizes[0] <= sizes[1] == sizes[2] == sizes[3]
    assert sizes[-1] == halo.cached_bytes


def test_several_halos_share_one_state_under_prefixes() -> None:
    vae, clips, rest = random_vae(small_config()), [random_video(3, 4, 6, seed=seed) for seed in range(2)], []
    state: dict[str, torch.Tensor] = {}
    for index, clip in enumerate(clips):
        halo = CachedHalo()
        vae.moments(clip, halo)
        halo.advance()
        state |= halo.state_dict(vae, f"tiles.{index}.")
        rest.append(vae.moments(clip[:, :, :2], halo))
    for index, clip in enumerate(clips):
        halo = CachedHalo()
        halo.load_state_dict(vae, state, f"tiles.{index}.")
        assert torch.equal(vae.moments(clip[:, :, :2], halo), rest[index])
    with pytest.raises(UserError, match=r"'tiles.0.encoder.conv_in', but this model has no such layer"):
        CachedHalo().load_state_dict(vae, state)


def test_the_model_keeps_no_state() -> None:
    vae = random_vae(small_config())
    before = copy.deepcopy(vae)
    list(vae.encode_stream(random_video(5, 4, 6).split(1, dim=2)))
    list(vae.decode_stream(random_latents(vae.config, 3, 2, 3).split(1, dim=2)))
    for (name, module), (_, then) in zip(vae.named_modules(), before.named_modules(), strict=True):
        assert vars(module).keys() == vars(then).keys(), name
        for kept in ("_parameters", "_buffers"):
            assert getattr(module, kept).keys() == getattr(then, kept).keys(), name
    assert vae.state_dict().keys() == before.state_dict().keys()
    assert all(torch.equal(weight, before.state_dict()[name]) for name, weight in vae.state_dict().items())


@pytest.mark.slow
def test_compiles_to_one_graph() -> None:
    # In float64, for in float32 the compiled convolutions are not the same routines and differ by rounding.
    vae = WanVAE(small_config(level_shortcuts=True, width_multipliers=(1, 1))).to(torch.float64)
    video = random_video(5, 4, 6)
    compiled = torch.compile(vae, fullgraph=True, backend="aot_eager")
    expected, _ = vae(video)
    result, _ = compiled(video)
    assert relative_difference(result, expected) <= 1e-12


@pytest.mark.slow
def test_compiles_with_sampling_and_checkpointing() -> None:
    vae = WanVAE(small_config(block="dense"))
    vae.set_gradient_checkpointing(True)
    reconstruction, posterior = torch.compile(vae, fullgraph=True, backend="aot_eager")(
        random_video(5, 4, 6, dtype=torch.float32), sample=True
    )
    (reconstruction.mean() + posterior.kl().mean()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in vae.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("block", BLOCK_KINDS)
def test_gradient_checkpointing_changes_no_gradient(block: str) -> None:
    calls: list[bool] = []

    def gradients(enabled: bool) -> list[torch.Tensor]:
        vae = random_vae(small_config(block=block)).requires_grad_(True)
        vae.set_gradient_checkpointing(enabled)
        conv = next(module for module in vae.encoder.levels[0].blocks.modules() if isinstance(module, CausalConv3d))
        conv.register_forward_hook(lambda *_: calls.append(enabled))
        reconstruction, posterior = vae(random_video(5, 4, 6))
        (reconstruction.square().mean() + posterior.kl().mean()).backward()
        return [parameter.grad for parameter in vae.parameters() if parameter.grad is not None]

    kept, recomputed = gradients(False), gradients(True)
    assert calls == [False, True, True]  # once more in the backward pass
    assert len(kept) == len(recomputed) == sum(1 for _ in random_vae(small_config(block=block)).parameters())
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradient_checkpointing_counts_a_batch_once_in_batch_norms(compiled: bool) -> None:
    def statistics(enabled: bool) -> dict[str, torch.Tensor]:
        vae = random_vae(small_config(block="resnet")).requires_grad_(True).train()
        vae.set_gradient_checkpointing(enabled)
        step = torch.compile(vae, backend="aot_eager") if compiled else vae
        step(random_video(5, 4, 6))[0].sum().backward()
        return {name: value for name, value in vae.state_dict().items() if "running" in name or "tracked" in name}

    kept, recomputed = statistics(False), statistics(True)
    assert len(kept) > 6
    torch.testing.assert_close(recomputed, kept)


def test_gradients_are_those_of_finite_differences() -> None:
    vae = random_vae(small_config(width_multipliers=(1,), temporal_downsample=(), decoder_width=2, encoder_width=2))
    video = random_video(2, 2, 2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: vae(x)[0], (video,))


def test_encode_and_decode_take_gradients_and_give_the_streamed_result() -> None:
    vae = random_vae(small_config())
    video = random_video(5, 4, 6)
    latents = vae.encode(video.clone().requires_grad_(True))
    assert latents.requires_grad
    assert relative_difference(latents, vae.encode(video)) <= 1e-12
    decoded = vae.decode(latents)
    decoded.sum().backward()
    assert relative_difference(decoded, vae.decode(latents.detach())) <= 1e-12
