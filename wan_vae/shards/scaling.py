"""What each of several devices has to compute and to send for one clip."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wan_vae.benchmark.work import work_of
from wan_vae.config import VAEConfig
from wan_vae.shards.grid import Grid, arranged
from wan_vae.shards.traffic import bytes_sent, decoder_looks, encoder_looks
from wan_vae.vae import WanVAE


@dataclass(frozen=True)
class Scaling:
    """The share of the device that has most to do.

    Attributes:
        grid: How the picture is cut.
        flops: What it computes, a multiply-add as two.
        sent: Bytes that it sends to others meanwhile.
        result: Bytes that it sends in the end, if all devices get the whole result.
    """

    grid: Grid
    flops: float
    sent: int
    result: int

    def seconds(self, flops_per_second: float) -> float:
        """Return how long it computes."""
        return self.flops / flops_per_second

    def balance(self, flops_per_second: float) -> float:
        """Return how many bytes a second must be sent for that to take no longer than to compute."""
        return self.sent / self.seconds(flops_per_second)


def scaling(
    config: VAEConfig,
    *,
    encodes: bool,
    frames: int,
    height: int,
    width: int,
    devices: Sequence[int],
    dtype: torch.dtype = torch.bfloat16,
) -> list[Scaling]:
    """Return each number of devices' share in encoding, or decoding, a clip of frames x height x width.

    Raises:
        UserError: The size does not fit, or is too small for so many devices.
    """
    side, unit = config.spatial_compression, config.temporal_compression
    latents, rows, columns = 1 + (frames - 1) // unit, height // side, width // side
    flops = _flops(config, encodes=encodes, latents=latents, height=rows, width=columns, dtype=dtype)
    looks = list(encoder_looks(config, frames) if encodes else decoder_looks(config, latents))
    values = (config.latent_channels * latents) if encodes else (3 * frames * (side * config.output_upscale) ** 2)
    found = []
    for count in devices:
        grid = arranged(count, rows, columns)
        largest = max(grid.latent_pixels)
        sent = max(bytes_sent(looks, grid, part, itemsize=dtype.itemsize) for part in range(count))
        result = largest * values * (count - 1) * dtype.itemsize
        found.append(Scaling(grid, flops * largest / (rows * columns), sent, result))
    return found


def _flops(config: VAEConfig, *, encodes: bool, latents: int, height: int, width: int, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        vae = WanVAE(config).to(dtype).eval().requires_grad_(False)

    def of(count: int) -> int:
        side, frames = config.spatial_compression, 1 + config.temporal_compression * (count - 1)
        if encodes:
            video = torch.empty(1, 3, frames, height * side, width * side, dtype=dtype, device="meta")
            return work_of(lambda: vae.encode(video)).flops
        final = torch.empty(1, config.latent_channels, count, height, width, dtype=dtype, device="meta")
        return work_of(lambda: vae.decode(final)).flops

    if latents <= 4:
        return of(latents)
    # The first ones have less to remember; all others cost the same.
    three, four = of(3), of(4)
    return four + (latents - 4) * (four - three)
