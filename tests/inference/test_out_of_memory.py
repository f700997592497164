"""Streams whose memory runs out in the middle of a pass, on a CPU, where a layer says so."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import (
    chunk_plans,
    random_latents,
    random_vae,
    random_video,
    relative_difference,
    small_config,
    small_configs,
)
from wan_vae import DecodeStream, EncodeStream, UserError, VAEConfig
from wan_vae.inference import input_history, passes
from wan_vae.inference.tiling import Tiling
from wan_vae.model.autoencoder import temporal_reach
from wan_vae.model.halo import NoNeighbors
from wan_vae.model.layers import CausalConv3d


class Memory:
    """Refuses calls of a layer: some from a call on, or all with more frames than fit."""

    def __init__(self, layer: nn.Module, *, first: int = 0, times: int = 0, frames: int | None = None) -> None:
        self.calls, self.refused = 0, 0
        self._layer, self._forward = layer, layer.forward
        self._first, self._times, self._frames = first, times, frames

    def __enter__(self) -> "Memory":
        self._layer.forward = self._limited
        return self

    def __exit__(self, *error: object) -> None:
        self._layer.forward = self._forward

    def _limited(self, x: Tensor, *others: object) -> Tensor:
        self.calls += 1
        length = sum(piece.shape[2] for piece in ([x] if isinstance(x, Tensor) else x.pieces))
        too_long = self._frames is not None and length > self._frames
        if too_long or (self._first < self.calls and self.refused < self._times):
            self.refused += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._forward(x, *others)


class Alone:
    """A neighbor that holds nothing."""

    margin = NoNeighbors.margin
    pad = NoNeighbors.pad
    around = NoNeighbors.around
    all_gather_pixels = NoNeighbors.all_gather_pixels
    max_over_ranks = NoNeighbors.max_over_ranks


@pytest.fixture(autouse=True)
def _memory_may_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_may_run_out", lambda device: device.type == "cpu")


def pushed(stream: EncodeStream | DecodeStream, chunks: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part for chunk in chunks if (part := stream.push(chunk)) is not None], dim=2)


def clip_of(config: VAEConfig, latents: int, *, encodes: bool) -> Tensor:
    side = config.spatial_compression
    if not encodes:
        return random_latents(config, latents, 1, 2)
    return random_video(1 + config.temporal_compression * (latents - 1), side, 2 * side)


def convolutions(half: nn.Module) -> list[nn.Module]:
    return [module for module in half.modules() if isinstance(module, CausalConv3d)]


@settings(max_examples=40, deadline=None)
@given(st.data(), small_configs(), st.booleans(), st.integers(2, 8), st.integers(1, 4))
def test_stream_that_runs_out_of_memory_anywhere_gives_the_same_result(
    data: st.DataObject, config: VAEConfig, encodes: bool, latents: int, per_pass: int
) -> None:
    vae, clip = random_vae(config), clip_of(config, latents, encodes=encodes)
    kind, half = (EncodeStream, vae.encoder) if encodes else (DecodeStream, vae.decoder)
    chunks = clip.split(data.draw(chunk_plans(clip.shape[2])), dim=2)
    expected = pushed(kind(vae, latents_per_pass=per_pass), chunks)
    layer = data.draw(st.sampled_from(convolutions(half)))
    first, times = data.draw(st.integers(0, 2 * latents)), data.draw(st.integers(1, 1 + per_pass.bit_length()))
    with Memory(layer, first=first, times=times) as memory:
        found = pushed(kind(vae, latents_per_pass=per_pass), chunks)
    assert memory.refused == times or memory.calls <= first + times
    assert relative_difference(found, expected) <= 1e-12
    if per_pass == times == 1:  # sums over as many columns as before
        assert torch.equal(found, expected)


@pytest.mark.parametrize("encodes", [True, False])
@pytest.mark.parametrize("changes", [{}, {"level_shortcuts": True, "width_multipliers": (1, 1)}, {"block": "dense"}])
def test_temporal_reach_is_no_less_than_what_a_latent_changes(changes: dict[str, object], encodes: bool) -> None:
    for more in ({}, {"temporal_downsample": (True, True), "width_multipliers": (1, 1, 1)}):
        vae = random_vae(small_config(**changes | more))
        unit = vae.config.temporal_compression
        reach = temporal_reach(vae.encoder if encodes else vae.decoder, unit if encodes else 1)
        clip = clip_of(vae.config, reach + 6, encodes=encodes)
        clip[:, :, 1 + unit if encodes else 2] = torch.nan  # the first frame of the latent of number 2
        found = vae.encode(clip) if encodes else vae.decode(clip)
        last = int(found.isnan().any(dim=(0, 1, 3, 4)).nonzero().max())
        assert (last if encodes else -(-last // unit)) <= 2 + reach


# More latents than any result depends on, so that the caches come from a part of the clip.
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("encodes", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"level_shortcuts": True, "width_multipliers": (1, 1)},
        {"block": "dense"},
        {"temporal_downsample": (True, True), "width_multipliers": (1, 1, 1)},
    ],
)
def test_caches_come_from_the_last_inputs_alone(changes: dict[str, object], encodes: bool, times: int) -> None:
    vae = random_vae(small_config(**changes))
    kind, half = (EncodeStream, vae.encoder) if encodes else (DecodeStream, vae.decoder)
    unit = vae.config.temporal_compression if encodes else 1
    reach = temporal_reach(half, unit)
    clip = clip_of(vae.config, reach + 8, encodes=encodes)
    chunks = clip.split(unit, dim=2)
    expected = pushed(kind(vae, latents_per_pass=1), chunks)
    with Memory(half.head, first=reach + 4, times=times) as memory:
        stream = kind(vae, latents_per_pass=1)
        found = pushed(stream, chunks)
    assert memory.refused == times
    levels = sum(vae.config.temporal_downsample)
    assert reach + 8 < memory.calls <= (1 + times * levels) * (reach + 8)
    assert sum(piece.shape[2] for piece in stream._stream._history._pieces) <= (reach + 2) * unit
    assert relative_difference(found, expected) <= (0 if times == 1 else 1e-12)


@pytest.mark.parametrize("encodes", [True, False])
def test_clip_in_one_call_is_repeated_without_copies_of_inputs(
    encodes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vae = random_vae(small_config())
    call, half = (vae.encode, vae.encoder) if encodes else (vae.decode, vae.decoder)
    clip = clip_of(vae.config, 9, encodes=encodes)
    with torch.no_grad():
        expected = call(clip, latents_per_pass=1)
    with monkeypatch.context() as patch, Memory(half.conv_in, first=6, times=1), torch.no_grad():
        patch.setattr(input_history, "deque", tuple)  # to which nothing can be appended
        assert torch.equal(call(clip, latents_per_pass=1), expected)
    (record,) = caplog.records
    assert record.message.startswith("Memory ran out with latents_per_pass=1; the pass is repeated")


@pytest.mark.parametrize(("fits", "refused"), [(4, 2), (2, 3), (1, 4)])
def test_passes_shrink_until_they_fit_and_stay_so(fits: int, refused: int, caplog: pytest.LogCaptureFixture) -> None:
    vae = random_vae(small_config())
    latents = random_latents(vae.config, 21, 1, 2)
    expected = pushed(DecodeStream(vae, latents_per_pass=8), latents.split(10, dim=2))
    with Memory(vae.decoder.conv_in, frames=fits) as memory:
        found = pushed(DecodeStream(vae, latents_per_pass=8), latents.split(10, dim=2))
    assert relative_difference(found, expected) <= 1e-12
    assert memory.refused == refused
    assert len(caplog.records) == 1


def test_levels_take_a_frame_at_a_time_where_a_latent_is_too_large() -> None:
    vae = random_vae(small_config(temporal_downsample=(True, False), width_multipliers=(1, 1, 1)))
    latents = random_latents(vae.config, 5, 1, 2)
    expected = pushed(DecodeStream(vae), (latents,))
    with Memory(vae.decoder.head.conv, frames=3) as memory:
        assert relative_difference(pushed(DecodeStream(vae), (latents,)), expected) <= 1e-12
    assert memory.refused > 0


@pytest.mark.parametrize("memory", [None, "auto"])
def test_error_is_raised_where_nothing_fits(memory: str | None) -> None:
    vae = random_vae(small_config())
    latents = random_latents(vae.config, 6, 1, 2)
    stream = DecodeStream(vae, latents_per_pass=4, memory=memory)
    stream.push(latents[:, :, :3])
    with Memory(vae.decoder.head.conv, times=100), pytest.raises(torch.cuda.OutOfMemoryError, match=r"2\.00 GiB"):
        stream.push(latents[:, :, 3:])
    with pytest.raises(UserError, match="was interrupted"):
        stream.push(latents[:, :, 3:])


def test_pass_is_repeated_after_caches_and_error_are_gone() -> None:
    vae = random_vae(small_config())
    stream = DecodeStream(vae, latents_per_pass=1)
    stream.push(random_latents(vae.config, 2, 1, 2))
    halo = weakref.ref(stream._stream._runner.halo)
    seen, forward = [], vae.decoder.conv_in.forward

    def looking(x: Tensor, *others: object) -> Tensor:
        seen.append(halo() is None)
        return forward(x, *others)

    vae.decoder.conv_in.forward = looking
    with Memory(vae.decoder.head.conv, times=1):
        stream.push(random_latents(vae.config, 1, 1, 2))
    assert seen == [False, True, True, True]


def test_loaded_stream_repeats_passes_as_soon_as_it_knows_enough_inputs() -> None:
    vae = random_vae(small_config())
    reach = temporal_reach(vae.decoder, 1)
    latents = random_latents(vae.config, reach + 6, 1, 2).split(1, dim=2)
    whole, first = DecodeStream(vae, latents_per_pass=1), DecodeStream(vae, latents_per_pass=1)
    expected = [whole.push(each) for each in latents]
    for each in latents[:3]:
        first.push(each)
    state = first.state_dict()
    for known, ends in ((reach, True), (reach + 1, False)):
        stream = DecodeStream(vae, latents_per_pass=1)
        stream.load_state_dict(state)
        for each in latents[3 : 3 + known]:
            stream.push(each)
        with Memory(vae.decoder.head.conv, times=1):
            if ends:
                with pytest.raises(torch.cuda.OutOfMemoryError):
                    stream.push(latents[3 + known])
            else:
                assert torch.equal(stream.push(latents[3 + known]), expected[3 + known])


def test_too_large_a_history_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_history, "_MOST_BYTES", 4 * 3 * 2 * 8)  # of four latents
    vae = random_vae(small_config())
    stream = DecodeStream(vae, latents_per_pass=1)
    for each in random_latents(vae.config, 9, 1, 2).split(1, dim=2):
        stream.push(each)
    assert stream._stream._history._kept == 4
    with Memory(vae.decoder.head.conv, times=1), pytest.raises(torch.cuda.OutOfMemoryError):
        stream.push(random_latents(vae.config, 1, 1, 2))


def test_part_of_a_picture_is_not_repeated_for_other_ranks_would_wait() -> None:
    vae = random_vae(small_config())
    stream = DecodeStream(vae, neighbors=Alone())
    with Memory(vae.decoder.head.conv, times=1), pytest.raises(torch.cuda.OutOfMemoryError):
        stream.push(random_latents(vae.config, 2, 1, 2))


def test_tiled_stream_is_repeated() -> None:
    vae = random_vae(small_config())
    latents = random_latents(vae.config, 6, 4, 4).split(2, dim=2)
    tiling = Tiling(2, 2, 0, len(vae.decoder.local_stages()))
    expected = pushed(DecodeStream(vae, latents_per_pass=1, tiling=tiling), latents)
    with Memory(vae.decoder.head.conv, first=13, times=1) as memory:
        found = pushed(DecodeStream(vae, latents_per_pass=1, tiling=tiling), latents)
    assert memory.refused == 1
    assert torch.equal(found, expected)
