"""What each of several devices has to compute and to send for one clip.

How much the parts of a picture send each other, counted from the architecture and the tiling alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from wan_vae.benchmark.measure import count_work
from wan_vae.config import VAEConfig
from wan_vae.inference.tiling import Tiling, receptive_margin
from wan_vae.model.autoencoder import Decoder, Encoder
from wan_vae.model.halo import Padding
from wan_vae.sharding.grid import Grid, best_grid, common
from wan_vae.vae import WanVAE

_AROUND = Padding(top=1, bottom=1, left=1, right=1)
_AFTER = Padding(bottom=1, right=1)


@dataclass(frozen=True)
class Look:
    """What one layer, or some together, see of other parts.

    Attributes:
        channels: Of the input.
        frames: Of the input in the whole clip; those that are remembered are not sent again.
        scale: Pixels of the input to a side of a latent.
        reach: How far beyond a part they look; None if they look at the whole picture.
    """

    channels: int
    frames: int
    scale: int
    reach: Padding | None = _AROUND


@dataclass(frozen=True)
class _Stage:
    """Layers that follow one another: a step of the network's local part, or all that needs whole frames.

    Attributes:
        channels: Of what enters, as for `Look`.
        frames: Likewise.
        scale: Likewise.
        looks: What the layers see.
    """

    channels: int
    frames: int
    scale: int
    looks: Sequence[Look]


def encoder_looks(config: VAEConfig, frames: int, tiling: Tiling | None = None) -> Iterator[Look]:
    """List the encoder's layers that look beyond their part, for a clip of so many frames.

    Steps that run in tiles look once, together.
    """
    scale = config.spatial_compression // config.patch_size
    widths = [config.encoder_width * multiplier for multiplier in (1, *config.width_multipliers)]
    stages = [_Stage(3, frames, config.spatial_compression, [Look(config.input_channels, frames, scale)])]
    for level, (entering, width) in enumerate(pairwise(widths)):
        looks = []
        for index in range(config.blocks_per_level):
            looks += _block(config, entering if index == 0 else width, width, frames, scale)
        if level == len(config.temporal_downsample):
            stages.append(_Stage(entering, frames, scale, looks))
            continue
        stages.append(_Stage(entering, frames, scale, [*looks, Look(width, frames, scale, _AFTER)]))
        scale //= 2
        frames = (frames + 1) // 2 if config.temporal_downsample[level] else frames
    yield from _local(stages, Encoder, config, tiling)
    yield from _middle(config, widths[-1], frames)
    yield Look(widths[-1], frames, scale)


def decoder_looks(config: VAEConfig, latents: int, tiling: Tiling | None = None) -> Iterator[Look]:
    """List the decoder's layers that look beyond their part, for a clip of so many latents.

    Steps that run in tiles look once, together.
    """
    frames, scale = latents, 1
    multipliers = config.width_multipliers[::-1]
    entering = config.decoder_width * multipliers[0]
    yield Look(config.latent_channels, frames, scale)
    yield from _middle(config, entering, frames)
    stages = []
    for level, multiplier in enumerate(multipliers):
        width, before = config.decoder_width * multiplier, (entering, frames, scale)
        looks = []
        for index in range(config.blocks_per_level + 1):
            looks += _block(config, entering if index == 0 else width, width, frames, scale)
        if level < len(config.temporal_downsample):
            frames = 2 * frames - 1 if config.temporal_downsample[::-1][level] else frames
            # The picture is doubled after it has been surrounded.
            looks.append(Look(width, frames, scale))
            scale *= 2
        stages.append(_Stage(*before, looks))
        entering = width if config.level_shortcuts else width // 2
    stages.append(_Stage(width, frames, scale, [Look(width, frames, scale)]))
    yield from _local(stages, Decoder, config, tiling)


def bytes_sent(looks: Iterable[Look], grid: Grid, part: int, *, itemsize: int, batch: int = 1) -> int:
    """Return how many bytes a part sends while a clip passes through layers, its result not counted.

    Args:
        looks: What the layers see of other parts.
        grid: How the picture is cut.
        part: Whose bytes.
        itemsize: Bytes of a value.
        batch: Clips that pass together.
    """
    return batch * itemsize * sum(look.channels * look.frames * _pixels_sent(look, grid, part) for look in looks)


def _pixels_sent(look: Look, grid: Grid, part: int) -> int:
    others = [other for other in range(grid.rows * grid.columns) if other != part]
    if look.reach is None:
        # A key and a value for each pixel, to all others.
        return 2 * grid.latent_pixels[part] * len(others)
    own = grid.area(part, look.scale)
    seen = (common(own, grid.area(other, look.scale, look.reach)) for other in others)
    return sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in filter(None, seen))


def _local(
    stages: Sequence[_Stage], network: type[Encoder | Decoder], config: VAEConfig, tiling: Tiling | None
) -> Iterator[Look]:
    if tiling is None or tiling.first == tiling.last:
        for stage in stages:
            yield from stage.looks
        return
    with torch.device("meta"):
        steps = network(config).steps()
    for stage in stages[: tiling.first]:
        yield from stage.looks
    margin = receptive_margin(steps[tiling.first : tiling.last])
    first = stages[tiling.first]
    around = Padding(top=margin, bottom=margin, left=margin, right=margin)
    yield Look(first.channels, first.frames, first.scale, around)
    for stage in stages[tiling.last :]:
        yield from stage.looks


def _middle(config: VAEConfig, width: int, frames: int) -> Iterator[Look]:
    yield from _block(config, width, width, frames, 1)
    yield Look(width, frames, 1, reach=None)
    yield from _block(config, width, width, frames, 1)


def _block(config: VAEConfig, entering: int, width: int, frames: int, scale: int) -> list[Look]:
    match config.block:
        case "bottleneck":
            inputs = [max(1, width // config.bottleneck_ratio)]
        case "dense":
            inputs = [entering + index * config.dense_growth for index in range(config.dense_layers)]
        case _:
            inputs = [entering, width]
    return [Look(channels, frames, scale) for channels in inputs]


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
        grid = best_grid(count, rows, columns)
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
            return count_work(lambda: vae.encode(video)).flops
        final = torch.empty(1, config.latent_channels, count, height, width, dtype=dtype, device="meta")
        return count_work(lambda: vae.decode(final)).flops

    if latents <= 4:
        return of(latents)
    # The first ones have less to remember; all others cost the same.
    three, four = of(3), of(4)
    return four + (latents - 4) * (four - three)
