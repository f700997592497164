"""The packaged model, on the packaged clip."""

from pathlib import Path

import torch

import wan_vae
from wan_vae import WanVAE
from wan_vae.evaluation.metrics import Metrics
from wan_vae.evaluation.reconstruct import reconstruct_frames
from wan_vae.io import open_clip

PACKAGE = Path(wan_vae.__file__).parent
LARGEST = 10 * 2**20


def test_nano_is_small_and_compresses_like_wan21() -> None:
    assert (PACKAGE / "weights" / "nano.safetensors").stat().st_size <= LARGEST
    config = WanVAE.from_pretrained("nano").config
    assert (config.spatial_compression, config.temporal_compression, config.latent_channels) == (8, 4, 16)


def test_nano_reconstructs_the_demo_clip() -> None:
    metrics = reconstructed(WanVAE.from_pretrained("nano"))
    mean = metrics.score().psnr
    assert mean > 28.5
    # No trails towards the end.
    assert min(frame.psnr for frame in metrics.frames) > mean - 3


def test_nano_decodes_late_frames_as_well_as_those_of_a_clip_that_begins_there() -> None:
    vae = WanVAE.from_pretrained("nano")
    with open_clip(PACKAGE / "demo" / "bunny.mp4", size=(160, 88), fit="crop") as clip:
        frames = torch.from_numpy(next(clip.chunks(49)).astype("float32"))
    video = frames.permute(3, 0, 1, 2)[None] / 127.5 - 1
    late, part = vae.decode(vae.encode(video))[:, :, 33:], video[:, :, 32:]
    errors = [(found - video[:, :, 33:]).square().mean() for found in (late, vae.decode(vae.encode(part))[:, :, 1:])]
    assert 10 * torch.log10(errors[0] / errors[1]) < 0.1


def test_nano_is_better_than_its_linear_skip_alone() -> None:
    whole, alone = WanVAE.from_pretrained("nano"), WanVAE.from_pretrained("nano")
    with torch.no_grad():
        for half, pointwise in ((alone.encoder, alone.quant_conv), (alone.decoder, alone.post_quant_conv)):
            half.head.conv.weight.zero_()
            assert half.head.conv.bias is not None
            half.head.conv.bias.zero_()
            torch.nn.init.dirac_(pointwise.weight)
            assert pointwise.bias is not None
            pointwise.bias.zero_()
    assert reconstructed(whole).score().psnr > reconstructed(alone).score().psnr + 1


def reconstructed(vae: WanVAE) -> Metrics:
    metrics = Metrics()
    with open_clip(PACKAGE / "demo" / "bunny.mp4", frames=(0, 13)) as clip, torch.inference_mode():
        for source, decoded in reconstruct_frames(vae, clip.chunks(4), clip.info.width, clip.info.height):
            metrics.add(source, decoded)
    return metrics


def test_nano_normalized_latents_are_near_normal() -> None:
    vae = WanVAE.from_pretrained("nano")
    with open_clip(PACKAGE / "demo" / "bunny.mp4", size=(160, 88), frames=(0, 9)) as clip:
        frames = torch.from_numpy(next(clip.chunks(9)).astype("float32"))
    latents = vae.encode(frames.permute(3, 0, 1, 2)[None] / 127.5 - 1)
    assert latents.std() > 0.3
    assert latents.std() < 3
    assert latents.mean().abs() < 1
