"""Streams as objects: what goes in and comes out when, and what is refused."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import (
    chunk_plans,
    random_latents,
    random_vae,
    random_video,
    relative_difference,
    small_config,
    small_configs,
)
from wan_vae import DecodeStream, EncodeStream, UserError, VAEConfig, WanVAE, empty_cache
from wan_vae.ops.workspace import Workspace


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return random_vae(small_config(temporal_downsample=(True, True), width_multipliers=(1, 1, 1)))


def pushed(stream: EncodeStream | DecodeStream, chunks: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part for chunk in chunks if (part := stream.push(chunk)) is not None], dim=2)


@settings(max_examples=40)
@given(st.data(), small_configs(), st.integers(1, 4))
def test_two_streams_in_turn_are_the_whole_clips(data: st.DataObject, config: VAEConfig, latents: int) -> None:
    vae, side = random_vae(config), config.spatial_compression
    frames = 1 + config.temporal_compression * (latents - 1)
    clips = [random_video(frames, side, 2 * side, seed=seed) for seed in range(2)]
    plans = [data.draw(chunk_plans(frames)) for _ in clips]
    per_pass = data.draw(st.integers(1, 3))
    encoders = [EncodeStream(vae, latents_per_pass=per_pass) for _ in clips]
    decoders = [DecodeStream(vae, latents_per_pass=per_pass) for _ in clips]
    encoded: list[list[Tensor]] = [[], []]
    decoded: list[list[Tensor]] = [[], []]
    chunks = [iter(clip.split(plan, dim=2)) for clip, plan in zip(clips, plans, strict=True)]
    for index in data.draw(st.permutations([0] * len(plans[0]) + [1] * len(plans[1]))):
        final = encoders[index].push(next(chunks[index]))
        if final is not None:
            encoded[index].append(final)
            video = decoders[index].push(final)
            assert video is not None
            decoded[index].append(video)
    for index, clip in enumerate(clips):
        encoders[index].flush()
        decoders[index].flush()
        whole = vae.encode(clip)
        assert relative_difference(torch.cat(encoded[index], dim=2), whole) <= 1e-10
        assert relative_difference(torch.cat(decoded[index], dim=2), vae.decode(whole)) <= 1e-10


@settings(max_examples=15)
@given(st.data(), small_configs(), st.integers(1, 3))
def test_a_stream_of_moments_has_the_mean_of_the_latents_and_the_posterior(
    data: st.DataObject, config: VAEConfig, latents: int
) -> None:
    vae, side = random_vae(config), config.spatial_compression
    frames = 1 + config.temporal_compression * (latents - 1)
    clip = random_video(frames, side, 2 * side)
    chunks = clip.split(data.draw(chunk_plans(frames)), dim=2)
    moments = pushed(EncodeStream(vae, moments=True), chunks)
    mean, logvar = moments.chunk(2, dim=1)
    assert torch.equal(vae.normalize(mean), pushed(EncodeStream(vae), chunks))
    with torch.no_grad():
        posterior = vae.posterior(clip)
    assert relative_difference(mean, posterior.mean) < 1e-10
    assert relative_difference(logvar.clamp(-30, 20), posterior.logvar) < 1e-10
    assert torch.equal(torch.cat(list(vae.encode_stream(chunks, moments=True)), dim=2), moments)


def test_moments_of_a_stream_that_decodes_are_refused(vae: WanVAE) -> None:
    with pytest.raises(UserError, match="Decoding gives frames, not moments"):
        DecodeStream(vae, moments=True)


def test_everything_comes_as_early_as_can_be(vae: WanVAE) -> None:
    counts = []
    with EncodeStream(vae) as stream:
        for frame in random_video(9, 4, 8).split(1, dim=2):
            latents = stream.push(frame)
            counts.append(0 if latents is None else latents.shape[2])
    assert counts == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    with DecodeStream(vae) as stream:
        assert [stream.push(latent).shape[2] for latent in random_latents(vae.config, 3, 1, 2).split(1, 2)] == [1, 4, 4]


def test_a_stream_knows_where_it_is(vae: WanVAE) -> None:
    stream = EncodeStream(vae)
    assert (stream.position, stream.missing) == (0, 1)
    assert stream.push(random_video(0, 4, 8)) is None
    assert (stream.position, stream.missing) == (0, 1)
    stream.push(random_video(7, 4, 8))
    assert (stream.position, stream.missing) == (7, 2)
    stream.push(random_video(2, 4, 8))
    assert (stream.position, stream.missing) == (9, 0)


def test_a_camera_may_use_one_memory_for_every_frame(vae: WanVAE) -> None:
    video, frame, parts = random_video(9, 4, 8), torch.empty(1, 3, 1, 4, 8, dtype=torch.float64), []
    with EncodeStream(vae) as stream:
        for index in range(9):
            parts.append(stream.push(frame.copy_(video[:, :, index : index + 1])))
            frame.fill_(torch.nan)
    expected = pushed(EncodeStream(vae, latents_per_pass=1), [video])
    assert torch.equal(torch.cat([part for part in parts if part is not None], dim=2), expected)


def test_results_stay_as_they_are(vae: WanVAE) -> None:
    latents = random_latents(vae.config, 4, 2, 3)
    stream = DecodeStream(vae)
    parts = [stream.push(latent) for latent in latents.split(1, dim=2)]
    copies = [part.clone() for part in parts]
    stream.push(latents)
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))


def test_the_end_of_the_block_ends_the_clip(vae: WanVAE) -> None:
    with pytest.raises(UserError, match="ended after 8 frames; 5 or 9 would fit"), EncodeStream(vae) as stream:
        stream.push(random_video(8, 4, 8))
    with pytest.raises(UserError, match="without a single frame"), DecodeStream(vae):
        pass
    with EncodeStream(vae) as stream:
        stream.push(random_video(5, 4, 8))
        stream.flush()
    with EncodeStream(vae) as stream:
        stream.push(random_video(3, 4, 8))
        stream.close()


def test_an_exception_in_the_block_is_not_masked(vae: WanVAE) -> None:
    stream = EncodeStream(vae)
    stream.push(random_video(3, 4, 8))
    with pytest.raises(ZeroDivisionError), stream:
        raise ZeroDivisionError
    with pytest.raises(UserError, match="has ended"):
        stream.push(random_video(2, 4, 8))


def test_frames_left_over_may_still_be_made_up_for(vae: WanVAE) -> None:
    video = random_video(8, 4, 8)
    stream = EncodeStream(vae, latents_per_pass=1)
    parts = [stream.push(video)]
    with pytest.raises(UserError, match="ended after 8 frames"):
        stream.flush()
    parts.append(stream.push(video[:, :, -1:].expand(-1, -1, stream.missing, -1, -1)))
    stream.flush()
    longer = torch.cat([video, video[:, :, -1:]], dim=2)
    assert torch.equal(torch.cat(parts, dim=2), pushed(EncodeStream(vae, latents_per_pass=1), [longer]))


def test_an_ended_stream_takes_nothing(vae: WanVAE) -> None:
    stream = EncodeStream(vae)
    stream.push(random_video(1, 4, 8))
    state = stream.state_dict()
    stream.flush()
    stream.close()
    for call in (
        lambda: stream.push(random_video(4, 4, 8)),
        stream.flush,
        stream.state_dict,
        lambda: stream.load_state_dict(state),
        lambda: stream.position,
        stream.__enter__,
    ):
        with pytest.raises(UserError, match="This stream has ended; make a new one"):
            call()


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (torch.zeros(1, 3, 1, 8, 8), r"\(1, 3, 1, 8, 8\), which in more than time differs .* \(1, 3, n, 4, 8\)"),
        (torch.zeros(2, 3, 1, 4, 8), r"\(2, 3, 1, 4, 8\), which in more than time differs"),
        (torch.zeros(1, 3, 1, 4, 8), r"dtype is torch.float32, but that of the chunks before it is torch.float64"),
        (torch.zeros(1, 3, 1, 4, 8, device="meta"), r"is on meta, but the model on cpu; move it there"),
        (torch.zeros(1, 3, 1, 4, 9), "width 9 is not a multiple of 4"),
        (torch.zeros(1, 3, 4, 8), r"\(B, 3, T, H, W\)"),
        (torch.zeros(1, 3, 1, 4, 8, dtype=torch.uint8), "torch.uint8; divide by 127.5"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_and_nothing_else(vae: WanVAE, chunk: Tensor, message: str) -> None:
    video = random_video(5, 4, 8)
    stream = EncodeStream(vae)
    parts = [stream.push(video[:, :, :3])]
    with pytest.raises(UserError, match=message):
        stream.push(chunk)
    parts.append(stream.push(video[:, :, 3:]))
    assert torch.equal(torch.cat(parts, dim=2), vae.encode(video))


def test_latents_that_do_not_fit_are_refused(vae: WanVAE) -> None:
    with pytest.raises(UserError, match=r"are \(B, 3, t, h, w\), but these are \(1, 4, 2, 3, 3\)"):
        DecodeStream(vae).push(torch.zeros(1, 4, 2, 3, 3))


@pytest.mark.parametrize("kind", [EncodeStream, DecodeStream])
def test_a_pass_computes_at_least_one_latent(vae: WanVAE, kind: type[EncodeStream | DecodeStream]) -> None:
    with pytest.raises(UserError, match="latents_per_pass is 0"):
        kind(vae, latents_per_pass=0)


def test_an_interrupted_pass_does_not_go_on_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, video = random_vae(small_config()), random_video(5, 4, 8)
    stream = EncodeStream(vae)
    stream.push(video[:, :, :1])
    state = stream.state_dict()

    def interrupted(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vae.encoder.head, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.push(video[:, :, 1:])
    for call in (lambda: stream.push(video[:, :, 1:]), stream.flush, stream.state_dict):
        with pytest.raises(UserError, match="interrupted"):
            call()
    resumed = EncodeStream(vae)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.push(video[:, :, 1:]), vae.encode(video)[:, :, 1:])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_every_mode_of_torch_is_the_same(mode: type) -> None:
    vae = random_vae(small_config()).requires_grad_(True)
    video = random_video(5, 4, 8)
    with mode():
        stream = EncodeStream(vae)
        first = stream.push(video[:, :, :2].requires_grad_(mode is torch.enable_grad))
        state = stream.state_dict()
    rest = stream.push(video[:, :, 2:])
    resumed = EncodeStream(vae)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.push(video[:, :, 2:]), rest)
    assert not first.requires_grad
    assert not rest.requires_grad
    with torch.no_grad():
        assert torch.equal(torch.cat([first, rest], dim=2), vae.encode(video))


def test_a_generator_hands_chunks_on_in_the_mode_of_its_caller(vae: WanVAE) -> None:
    modes = []

    def chunks() -> object:
        modes.append(torch.is_grad_enabled())
        yield random_video(1, 4, 8)

    list(vae.encode_stream(chunks()))
    assert modes == [True]


def held(stream: EncodeStream | DecodeStream) -> tuple[int, int, int]:
    inside = stream._stream
    pieces = [piece for past in inside._runner.halo._cache.values() for piece in past]
    remembered = sum(piece.untyped_storage().nbytes() for piece in pieces)
    reserved = inside._runner.halo.workspace.stats().reserved
    return remembered, inside._waiting.untyped_storage().nbytes(), reserved


def test_memory_does_not_grow_with_the_clip() -> None:
    empty_cache()
    vae = random_vae(small_config(), torch.float32)
    encoder, decoder, sizes = EncodeStream(vae), DecodeStream(vae), []
    for chunk in random_video(61, 8, 8, dtype=torch.float32).split([1, *[3] * 20], dim=2):
        decoder.push(encoder.push(chunk))
        sizes.append((*held(encoder), *held(decoder), Workspace().stats().cached))
    # Two passes until everything is remembered that ever will be; then one frame waits after every other push.
    assert len(set(sizes[2::2])) == len(set(sizes[3::2])) == 1


def test_an_ended_stream_holds_nothing(vae: WanVAE) -> None:
    stream = DecodeStream(vae)
    stream.push(random_latents(vae.config, 2, 2, 2))
    halo = weakref.ref(stream._stream._runner.halo)
    stream.flush()
    assert halo() is None
