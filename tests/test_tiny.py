"""Tiny autoencoders: the published structures, how clips pass through them, and which files are loaded as what."""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import chunk_plans, random_video
from wan_vae import CheckpointError, TinyVAE, UserError, WanVAE
from wan_vae.config import load_config
from wan_vae.model.tiny import TinyConfig
from wan_vae.posterior import LatentStatistics
from wan_vae.tiny import load_vae

CONFIGS = {
    "taew2_1": TinyConfig(),
    "taew2_2": TinyConfig(latent_channels=48),
    "taew2_2_super": TinyConfig(latent_channels=48, decoder="super"),
    "lighttaew2_1": TinyConfig(raw=True),
    "lighttaew2_2": TinyConfig(latent_channels=48, raw=True),
}


@cache
def random_tiny(name: str = "taew2_1", dtype: torch.dtype = torch.float64) -> TinyVAE:
    """Build a tiny autoencoder whose decoder's output is mostly in range."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        vae = TinyVAE(CONFIGS[name]).to(dtype).eval().requires_grad_(False)
    vae.to_empty(device="cpu")
    for weight in vae.state_dict().values():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
        weight.copy_(0.1 * noise if weight.ndim == 1 else noise * weight[0].numel() ** -0.5)
    vae.decoder[22].weight.mul_(0.1)  # type: ignore[operator, union-attr]
    vae.decoder[22].bias.add_(0.5)  # type: ignore[operator, union-attr]
    return vae


def random_latents(vae: TinyVAE, frames: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, vae.config.latent_channels, frames, 1, 2)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def vae() -> TinyVAE:
    return random_tiny()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_tiny(dtype=torch.float16).state_dict()


@pytest.mark.parametrize(
    ("name", "tensors", "parameters", "some"),
    [
        (
            "taew2_1",
            128,
            11_315_539,
            {
                "encoder.0.weight": (64, 3, 3, 3),
                "encoder.7.conv.weight": (64, 128, 1, 1),
                "encoder.17.bias": (16,),
                "decoder.1.weight": (256, 16, 3, 3),
                "decoder.5.conv.4.weight": (256, 256, 3, 3),
                "decoder.13.conv.weight": (256, 128, 1, 1),
                "decoder.22.bias": (3,),
            },
        ),
        (
            "taew2_2",
            128,
            11_418_108,
            {"encoder.0.weight": (64, 12, 3, 3), "encoder.17.bias": (48,), "decoder.22.bias": (12,)},
        ),
        (
            "taew2_2_super",
            112,
            20_487_996,
            {
                "decoder.0.weight": (512, 48, 1, 1),
                "decoder.1.conv.0.weight": (1024, 1, 7, 7),
                "decoder.10.conv.1.bias": (1024,),
                "decoder.17.conv.3.weight": (128, 512, 1, 1),
                "decoder.18.weight": (256, 128, 3, 3),
                "decoder.21.conv.weight": (128, 64, 1, 1),
            },
        ),
    ],
)
def test_weights_have_the_published_names_and_shapes(
    name: str, tensors: int, parameters: int, some: dict[str, tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        state = TinyVAE(CONFIGS[name]).state_dict()
    assert {key: tuple(state[key].shape) for key in some} == some
    assert len(state) == tensors
    assert sum(weight.numel() for weight in state.values()) == parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_ranges_and_statistics_are_those_of_the_vae_that_made_the_latents(name: str) -> None:
    vae = random_tiny(name, torch.float32)
    side = {16: 8, 48: 16}[vae.config.latent_channels]
    latents = vae.encode(random_video(5, side, 2 * side, dtype=torch.float32))
    assert latents.shape == (1, vae.config.latent_channels, 2, 1, 2)
    video = vae.decode(latents)
    assert video.shape == (1, 3, 5, side, 2 * side)
    assert -1 <= video.min() < video.max() <= 1
    assert vae.config == load_config({16: "wan2.1", 48: "wan2.2"}[vae.config.latent_channels])


@pytest.mark.parametrize("decoder", ["base", "super"])
def test_decode_uses_the_block_input_of_the_latent_before_and_trims_three_frames(decoder: str) -> None:
    vae = random_tiny("taew2_2_super" if decoder == "super" else "taew2_1")
    latents = random_latents(vae, 4)
    video = vae.decode(latents)
    # In other memory, and in a clip of another length, sums may be taken in another order.
    torch.testing.assert_close(vae.decode(latents[:, :, :3]), video[:, :, :9], rtol=0, atol=1e-12)  # causal
    changed = latents.clone()
    changed[:, :, 0] += 1
    apart = (vae.decode(changed) - video).abs().amax(dim=(0, 1, 3, 4))
    assert (apart[:5] > 1e-6).all()


def test_encode_repeats_the_last_frame_to_complete_the_last_latent(vae: TinyVAE) -> None:
    video = random_video(5, 8, 16)
    padded = torch.cat([video, video[:, :, -1:].expand(-1, -1, 4, -1, -1)], dim=2)
    latents = vae.encode(video)
    assert torch.equal(vae.encode(padded)[:, :, :2], latents)
    # Latent 0 is of frames 0 to 3, which a decoder shows as frame 0.
    later = video.clone()
    later[:, :, 3] *= -1
    assert not torch.equal(vae.encode(later)[:, :, 0], latents[:, :, 0])
    later = video.clone()
    later[:, :, 4] *= -1
    assert torch.equal(vae.encode(later)[:, :, 0], latents[:, :, 0])


@settings(max_examples=4)
@given(
    chunks=chunk_plans(5),
    latents=chunk_plans(3),
    per_pass=st.integers(1, 2),
    name=st.sampled_from(["taew2_1", "taew2_2_super"]),
)
def test_streams_equal_whole_clips_however_they_are_cut(
    chunks: list[int], latents: list[int], per_pass: int, name: str
) -> None:
    vae = random_tiny(name)
    side = vae.config.spatial_compression
    video, z = random_video(5, side, side, batch=2), random_latents(vae, 3, batch=2)
    for whole, parts in (
        (vae.encode(video), vae.encode_stream(video.split(chunks, dim=2), latents_per_pass=per_pass)),
        (vae.decode(z), vae.decode_stream(z.split(latents, dim=2), latents_per_pass=per_pass)),
    ):
        assert torch.allclose(torch.cat(list(parts), dim=2), whole, rtol=0, atol=1e-12)
    assert torch.allclose(vae.encode(video, latents_per_pass=1), vae.encode(video), rtol=0, atol=1e-12)


def test_stream_gives_results_before_the_clip_ends_and_keeps_no_chunk(vae: TinyVAE) -> None:
    taken = []

    def chunks() -> Iterator[Tensor]:
        for index in range(9):
            taken.append(index)
            yield random_video(1, 8, 8, seed=index)

    stream = vae.encode_stream(chunks())
    next(stream)
    assert taken == [0, 1, 2, 3]
    chunk = random_video(4, 8, 8)
    stream = vae.encode_stream([chunk, random_video(1, 8, 8)])
    first = next(stream).clone()
    chunk.zero_()  # its owner fills it anew
    whole = torch.cat([random_video(4, 8, 8), random_video(1, 8, 8)], dim=2)
    assert torch.equal(torch.cat([first, *stream], dim=2), vae.encode(whole))


def test_whole_clips_pass_a_few_latents_at_a_time_and_the_largest_pictures_one_by_one(
    vae: TinyVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: dict[int, set[int]] = {1: set(), 20: set(), 22: set()}
    hooks = [
        vae.decoder[index].register_forward_hook(lambda module, given, result, sizes=sizes: sizes.add(len(result)))
        for index, sizes in together.items()
    ]
    monkeypatch.setattr(TinyVAE, "default_chunk_size", lambda self, height, width: 2)
    video = vae.decode(random_latents(vae, 5))
    for hook in hooks:
        hook.remove()
    assert together == {1: {1, 2}, 20: {1}, 22: {1}}
    assert torch.allclose(vae.decode(random_latents(vae, 5), latents_per_pass=5), video, rtol=0, atol=1e-12)


def test_raw_latents_are_converted_to_what_the_network_works_on(caplog: pytest.LogCaptureFixture) -> None:
    build = random_tiny.__wrapped__  # new ones, since each warns once
    vae, raw_vae = build("taew2_1"), build("lighttaew2_1")  # of the same weights
    statistics = LatentStatistics.of(vae.config, torch.float64, torch.device("cpu"))
    z, video = random_latents(vae, 2), random_video(1, 8, 8)
    raw = statistics.denormalized(z)
    assert torch.equal(raw_vae.decode(z), vae.decode(raw))
    assert torch.equal(raw_vae.decode(raw, raw=True), vae.decode(raw))
    assert torch.allclose(vae.decode(raw, raw=True), vae.decode(z), rtol=0, atol=1e-12)
    assert torch.equal(raw_vae.encode(video), statistics.normalized(vae.encode(video)))
    assert "look raw" in caplog.text


def test_bad_arguments_are_one_sentence(vae: TinyVAE) -> None:
    z, video = random_latents(vae, 2), random_video(5, 8, 8)
    calls = {
        r"4 frames are not 1 \+ 4k; 1 or 5 would fit": lambda: vae.encode(video[:, :, :4]),
        "ended after 4 frames; 1 or 5 would fit": lambda: list(vae.encode_stream([video[:, :, :4]])),
        "ended without a single frame": lambda: list(vae.decode_stream([])),
        "differs from the chunks before it": lambda: list(vae.decode_stream([z, z[..., :1]])),
        "The height 7 is not a multiple of 8": lambda: vae.encode(video[:, :, :, :7]),
        r"are \(B, 16, t, h, w\), but these are \(1, 3, 5, 8, 8\)": lambda: vae.decode(video),
        "The memory is '1GiB', but tiny autoencoders": lambda: vae.decode(z, memory="1GiB"),
        "latents_per_pass is 0": lambda: vae.encode_stream([video], latents_per_pass=0),
        "chunks is 3; it must be an iterable": lambda: vae.decode_stream(3),  # type: ignore[arg-type]
        "latent_channels is 32; Wan's latents have 16": lambda: TinyConfig(latent_channels=32),
        "decoder is 'huge'; it must be base or super": lambda: TinyConfig(decoder="huge"),  # type: ignore[arg-type]
        "raw is 1; it must be True": lambda: TinyVAE.from_pretrained("x.pth", raw=1),  # type: ignore[arg-type]
    }
    for message, call in calls.items():
        with pytest.raises(UserError, match=message):
            call()


def test_gradients_reach_the_latents_of_a_whole_clip_and_not_those_of_a_stream(vae: TinyVAE) -> None:
    z = random_latents(vae, 2).requires_grad_()
    vae.decode(z).sum().backward()
    assert z.grad is not None
    assert (z.grad != 0).any()
    assert not next(vae.decode_stream([z])).requires_grad


@pytest.mark.parametrize(
    ("name", "raw", "notice"),
    [
        ("taew2_1.pth", False, None),
        ("lighttaew2_1.safetensors", True, "raw latents, as LightX2V's files of its name do"),
        ("model.safetensors", False, "taken to be for normalized latents of wan2.1"),
    ],
)
def test_from_pretrained_takes_raw_from_the_name_and_says_so(
    name: str,
    raw: bool,
    notice: str | None,
    weights: dict[str, Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / name
    if name.endswith(".pth"):
        torch.save(weights, path)
    else:
        save_file(weights, path)
    vae = TinyVAE.from_pretrained(path)
    assert (vae.tiny_config, vae.dtype, vae.training) == (TinyConfig(raw=raw), torch.float16, False)
    assert all(torch.equal(weight, weights[key]) for key, weight in vae.state_dict().items())
    assert (notice or "") in caplog.text
    assert len(caplog.records) == (notice is not None)
    caplog.clear()
    loaded = load_vae(path, raw=not raw, dtype="float32")
    assert isinstance(loaded, TinyVAE)
    assert (loaded.tiny_config.raw, loaded.dtype, caplog.text) == (not raw, torch.float32, "")


def test_from_pretrained_tells_the_structure_by_the_tensors(tmp_path: Path) -> None:
    for name in ("taew2_2", "taew2_2_super"):
        expected = random_tiny(name, torch.bfloat16)
        save_file(expected.state_dict(), tmp_path / "taew.safetensors")
        vae = TinyVAE.from_pretrained(tmp_path / "taew.safetensors")
        assert vae.tiny_config == CONFIGS[name]
        assert vae.digest() == expected.digest()


def test_from_pretrained_keeps_the_last_rows_of_a_weight_for_more_frames(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    more = torch.cat([torch.full((256, 256, 1, 1), math.pi).half(), weights["decoder.7.conv.weight"]])
    save_file(weights | {"decoder.7.conv.weight": more}, tmp_path / "taew2_1.safetensors")
    vae = TinyVAE.from_pretrained(tmp_path / "taew2_1.safetensors")
    assert torch.equal(vae.state_dict()["decoder.7.conv.weight"], weights["decoder.7.conv.weight"])


def test_from_pretrained_refuses_other_files_in_one_sentence(weights: dict[str, Tensor], tmp_path: Path) -> None:
    decoder = {name: weight for name, weight in weights.items() if name.startswith("decoder")}
    ones = {name: torch.ones(1) for name in weights}
    cases: dict[str, dict[str, Tensor]] = {
        "'encoder.0.weight' is missing": decoder,
        r"not of Wan's latents, which have 16 or 48 channels: .* \(256, 32, 3, 3\)": weights
        | {"decoder.1.weight": torch.zeros(256, 32, 3, 3)},
        r"not of Wan's latents, .* is \(1,\)": ones,
        r"\(64, 12, 3, 3\) where \(64, 3, 3, 3\) belongs": weights | {"encoder.0.weight": torch.zeros(64, 12, 3, 3)},
        "'decoder.9.more' is of another model": weights | {"decoder.9.more": torch.zeros(1)},
        "torch.float8_e5m2, which no weight": weights | {"encoder.0.bias": torch.zeros(64).to(torch.float8_e5m2)},
        "1 of 16 values of encoder.17.bias are NaN": weights
        | {"encoder.17.bias": torch.tensor([math.nan] + 15 * [0.0])},
        r"\(\) where \(256, 256, 1, 1\) belongs": weights | {"decoder.7.conv.weight": torch.tensor(1.0)},
        r"\(100, 256, 1, 1\) where": weights | {"decoder.7.conv.weight": torch.zeros(100, 256, 1, 1)},
        "is no tiny autoencoder": {"x": torch.zeros(1)},
    }
    path = tmp_path / "taew2_1.safetensors"
    for message, content in cases.items():
        save_file(content, path)
        with pytest.raises(CheckpointError, match=message):
            TinyVAE.from_pretrained(path)
    torch.save(weights | {"encoder.0.bias": torch.zeros(64, device="meta")}, path)
    with pytest.raises(CheckpointError, match=r"'encoder\.0\.bias' has no values"):
        TinyVAE.from_pretrained(path)


def test_each_class_names_the_other_for_its_files(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "taew2_1.safetensors"
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"it is a tiny autoencoder \(TAEHV\).* TinyVAE.from_pretrained"):
        WanVAE.from_pretrained(path)
    assert isinstance(load_vae("nano"), WanVAE)
    with pytest.raises(UserError, match="nano is no tiny autoencoder, and takes normalized latents"):
        load_vae("nano", raw=True)
