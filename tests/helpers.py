"""Small random models and inputs, and the reference implementation, shared by the tests."""

import json
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from wan_vae import VAEConfig, WanVAE
from wan_vae.checkpoints.detect import config_to_diffusers
from wan_vae.config import BLOCK_KINDS


def small_config(**changes: object) -> VAEConfig:
    """Return a config with two levels, time halved between them, and latent statistics that are not the identity."""
    values = {
        "latent_channels": 3,
        "encoder_width": 4,
        "decoder_width": 6,
        "width_multipliers": (1, 2),
        "blocks_per_level": 1,
        "temporal_downsample": (True,),
        "level_shortcuts": False,
        "patch_size": 1,
        "output_upscale": 1,
        "dropout": 0.0,
        "block": "wan",
        "bottleneck_ratio": 2,
        "dense_growth": 3,
        "dense_layers": 2,
    } | changes
    channels = values["latent_channels"]
    values.setdefault("latent_mean", tuple(0.1 * index - 0.2 for index in range(channels)))
    values.setdefault("latent_std", tuple(0.5 + 0.3 * index for index in range(channels)))
    return VAEConfig(**values)


@st.composite
def small_configs(draw: st.DrawFn) -> VAEConfig:
    """Draw small configs of both styles, every block kind, one to three levels, any choice of halvings in time."""
    level_shortcuts = draw(st.booleans())
    shortcut_multipliers = [(1,), (1, 1), (2, 2), (1, 2, 2)]
    multipliers = draw(st.sampled_from(shortcut_multipliers + ([] if level_shortcuts else [(1, 2), (2, 1), (1, 2, 4)])))
    return small_config(
        latent_channels=draw(st.integers(1, 3)),
        encoder_width=draw(st.integers(2, 5)),
        decoder_width=2 * draw(st.integers(2, 3)),
        width_multipliers=multipliers,
        blocks_per_level=tuple(draw(st.integers(1, 2)) for _ in multipliers),
        temporal_downsample=tuple(draw(st.booleans()) for _ in multipliers[1:]),
        level_shortcuts=level_shortcuts,
        patch_size=draw(st.sampled_from([1, 2])),
        output_upscale=draw(st.sampled_from([1, 2])),
        block=draw(st.sampled_from(BLOCK_KINDS)),
        linear_skip=draw(st.booleans()),
        middle_attention=draw(st.booleans()),
    )


@st.composite
def chunk_plans(draw: st.DrawFn, total: int) -> list[int]:
    """Draw a way to cut `total` items in chunks, empty ones included."""
    cuts = sorted(draw(st.lists(st.integers(0, total), max_size=6)))
    return [stop - start for start, stop in zip([0, *cuts], [*cuts, total], strict=True)]


def randomize(network: nn.Module, seed: int = 0) -> None:
    """Give every weight and statistic a random value, so that no path of the network is hidden by its initialization.

    Scales keep activations near 1 and the decoder's output clear of the clamp at 1, which would hide differences.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.ndim > 1 and not name.endswith("gamma"):
            fan_in = tensor[0].numel()
            value = noise * fan_in**-0.5
        elif name.endswith("bias") or name.endswith("running_mean"):
            value = 0.1 * noise
        else:  # gamma, weights of batch norms, running variances
            value = 1 + 0.1 * noise.clamp(-3, 3)
        if name.startswith(("decoder.head.conv", "decoder.linear_skip")):
            value = 0.1 * value
        tensor.copy_(value)


def random_vae(config: VAEConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> WanVAE:
    """Build a VAE in eval mode whose every weight is random."""
    vae = WanVAE(config).to(dtype).eval().requires_grad_(False)
    randomize(vae, seed)
    return vae


def random_video(
    frames: int,
    height: int,
    width: int,
    *,
    batch: int = 1,
    channels: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Tensor:
    """Return noise in [-1, 1], (B, 3, T, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(batch, channels, frames, height, width, generator=generator, dtype=dtype) - 1


def random_latents(
    config: VAEConfig, frames: int, height: int, width: int, *, batch: int = 1, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return normal noise, (B, z, t, h, w)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, config.latent_channels, frames, height, width, generator=generator, dtype=dtype)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest value of `theirs`."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def diffusers_vae(config: VAEConfig) -> nn.Module:
    """Build diffusers' VAE for a config, with random weights in float64."""
    import diffusers

    arguments = config_to_diffusers(config)
    kind = getattr(diffusers, arguments.pop("_class_name"))
    vae = kind(**arguments)
    for module in vae.modules():
        if isinstance(module, nn.Upsample):
            # diffusers rounds to float32 in its nearest-neighbor upsampling, which copies values and needs no rounding.
            type(module).forward = nn.Upsample.forward
    vae = vae.to(torch.float64).eval().requires_grad_(False)
    randomize(vae)
    vae.decoder.conv_out.weight.mul_(0.1)
    vae.decoder.conv_out.bias.mul_(0.1)
    return vae


def stored_config(path: Path) -> dict[str, object]:
    """Read the config.json of a diffusers folder."""
    return json.loads((path / "config.json").read_text(encoding="utf-8"))
