import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import random_vae, small_config
from tests.training.runs import Material
from wan_vae.evaluation.lpips import LPIPS
from wan_vae.io.frames import tensors_to_frames
from wan_vae.training.validation import STRIP_FRAMES, validate, with_latent_statistics


def clips() -> list[tuple[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [(name, random.integers(0, 256, (frames, 32, 40, 3), dtype=np.uint8)) for name, frames in
            (("a.mkv", 9), ("one.png", 1), ("b.mkv", 3))]  # fmt: skip


def test_validate_returns_psnr_ssim_and_strips() -> None:
    vae = random_vae(small_config(), torch.float32)
    found = validate(vae, clips(), None)
    assert found.scalars.keys() == {"psnr", "ssim"}
    assert {name: strip.shape for name, strip in found.strips.items()} == {
        "a.mkv": (64, 40 * STRIP_FRAMES, 3),
        "one.png": (64, 40, 3),
        "b.mkv": (64, 120, 3),
    }
    errors = []
    for name, frames in clips():
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        decoded = next(tensors_to_frames([vae.decode(vae.encode(video))], 40, 32, vae.device))
        errors.append(10 * np.log10(255**2 / np.square(frames.astype(float) - decoded).mean()))
        strip = found.strips[name]
        assert strip.dtype == np.uint8
        for column, index in ((0, 0), (-40, -1)):
            assert np.array_equal(strip[:32, column:][:, :40], frames[index])
            # Streaming encodes in other shapes than a whole clip, so rounding may differ.
            assert np.abs(strip[32:, column:][:, :40].astype(int) - decoded[index]).max() <= 1
    assert found.scalars["psnr"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert -1 < found.scalars["ssim"] < 1


def test_validate_with_lpips_returns_it(material: Material) -> None:
    found = validate(random_vae(small_config(), torch.float32), clips(), LPIPS("alex", Path(material.backbone)))
    assert found.scalars.keys() == {"psnr", "ssim", "lpips"}
    assert found.scalars["lpips"] > 0


def test_validate_small_clip_omits_ssim() -> None:
    small = [(name, frames[:, :10, :12]) for name, frames in clips()]
    found = validate(random_vae(small_config(), torch.float32), [*clips(), *small], None)
    assert found.scalars.keys() == {"psnr"}


def test_validate_keeps_the_strips_of_clips_of_one_name() -> None:
    found = validate(random_vae(small_config(), torch.float32), [clips()[1]] * 3, None)
    assert list(found.strips) == ["one.png", "one.png (2)", "one.png (3)"]


def test_validate_changes_neither_weights_nor_random_state() -> None:
    vae = random_vae(small_config(block="resnet"), torch.float32)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    validate(vae, clips(), None)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def random_clips(*frames: int, height: int = 16, width: int = 24) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (count, height, width, 3), dtype=np.uint8) for count in frames]


@pytest.mark.parametrize("level_shortcuts", [False, True])
def test_latent_statistics_normalize_to_mean_0_and_deviation_1(level_shortcuts: bool) -> None:
    config = small_config(level_shortcuts=level_shortcuts, width_multipliers=(2, 2))
    vae = random_vae(config)
    measured = with_latent_statistics(vae, random_clips(5, 5))
    assert measured.config.latent_mean != vae.config.latent_mean
    assert dataclasses.replace(measured.config, latent_mean=config.latent_mean, latent_std=config.latent_std) == config
    videos = [torch.from_numpy(clip).permute(3, 0, 1, 2)[None].double() / 127.5 - 1 for clip in random_clips(5, 5)]
    final = torch.cat([measured.encode(video) for video in videos]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(final.mean(dim=1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(final.std(dim=1, correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-4)


def test_latent_statistics_weight_clips_equally() -> None:
    vae = random_vae(small_config())
    small, large = random_clips(1), random_clips(9, height=32, width=32)
    measured = {name: with_latent_statistics(vae, some).config.latent_mean for name, some in
                (("small", small), ("large", large), ("both", small + large))}  # fmt: skip
    expected = (np.array(measured["small"]) + np.array(measured["large"])) / 2
    assert measured["both"] == pytest.approx(tuple(expected), rel=1e-4, abs=1e-5)


def test_latent_statistics_keep_the_weights() -> None:
    vae = random_vae(small_config(block="resnet"), torch.float32).train()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    measured = with_latent_statistics(vae, random_clips(3))
    for name, value in measured.state_dict().items():
        assert torch.equal(value, before[name])
    assert not measured.training
    assert vae.config == small_config(block="resnet")
    latents = torch.zeros(1, 3, 2, 2, 2)
    raw = measured.denormalize(latents)
    torch.testing.assert_close(measured.decode(latents), vae.eval().decode(vae.normalize(raw)))


def test_latent_statistics_of_a_constant_channel_have_positive_deviation() -> None:
    vae = random_vae(small_config())
    vae.quant_conv.weight[0] = 0
    config = with_latent_statistics(vae, random_clips(3)).config
    assert vae.quant_conv.bias is not None
    assert config.latent_mean[0] == pytest.approx(vae.quant_conv.bias[0].item(), rel=1e-4)
    assert 0 < config.latent_std[0] < 1e-5
