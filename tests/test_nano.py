"""The model in the package, on the clip in the package."""

from pathlib import Path

import torch

import wan_vae
from wan_vae import WanVAE
from wan_vae.evaluation.metrics import Metrics
from wan_vae.evaluation.reconstruct import reconstruct_frames
from wan_vae.io import open_clip

PACKAGE = Path(wan_vae.__file__).parent
LARGEST = 10 * 2**20


def test_it_is_small_and_compresses_as_wan21_does() -> None:
    assert (PACKAGE / "models" / "nano.safetensors").stat().st_size <= LARGEST
    config = WanVAE.from_pretrained("nano").config
    assert (config.spatial_compression, config.temporal_compression, config.latent_channels) == (8, 4, 16)


def test_the_demo_clip_comes_back() -> None:
    vae = WanVAE.from_pretrained("nano")
    fidelity, by_frame = Metrics(), []
    with open_clip(PACKAGE / "demo" / "bunny.mp4", frames=(0, 13)) as clip, torch.inference_mode():
        for source, decoded in reconstruct_frames(vae, clip.chunks(4), clip.info.width, clip.info.height):
            fidelity.add(source, decoded)
            alone = Metrics()
            alone.add(source, decoded)
            by_frame.append(alone.score().psnr)
    assert fidelity.score().psnr > 25
    # No flash at the start, and no trails towards the end.
    assert min(by_frame) > fidelity.score().psnr - 3


def test_final_latents_are_near_normal() -> None:
    vae = WanVAE.from_pretrained("nano")
    with open_clip(PACKAGE / "demo" / "bunny.mp4", size=(160, 88), frames=(0, 9)) as clip:
        frames = torch.from_numpy(next(clip.chunks(9)).astype("float32"))
    final = vae.encode(frames.permute(3, 0, 1, 2)[None] / 127.5 - 1)
    assert final.std() > 0.3
    assert final.std() < 3
    assert final.mean().abs() < 1
