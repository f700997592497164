"""Bytes that the parts of a picture send each other, counted from the architecture and the tiling alone.

The tests compare this with the bytes of real transfers and of dry runs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from wan_vae.config import VAEConfig
from wan_vae.inference.tiling import Tiling, receptive_margin
from wan_vae.model.autoencoder import Decoder, Encoder
from wan_vae.model.halo import Padding
from wan_vae.sharding.grid import Grid, common

_AROUND = Padding(top=1, bottom=1, left=1, right=1)
_AFTER = Padding(bottom=1, right=1)


@dataclass(frozen=True)
class Look:
    """Input of a layer, or of several layers in tiles, that depends on other parts."""

    channels: int
    frames: int  # of the whole clip: cached frames are not sent again
    scale: int  # input pixels per latent pixel
    reach: Padding | None = _AROUND  # beyond the part; None for the whole picture


@dataclass(frozen=True)
class _Stage:
    """A local stage of the network, or all stages on whole frames: its input, as in `Look`, and its layers."""

    channels: int
    frames: int
    scale: int
    looks: Sequence[Look]


def encoder_looks(config: VAEConfig, frames: int, tiling: Tiling | None = None) -> Iterator[Look]:
    """List the inputs of the encoder that depend on other parts; stages in tiles share one."""
    scale = config.spatial_compression // config.patch_size
    widths = [config.encoder_width * multiplier for multiplier in (1, *config.width_multipliers)]
    stages = [_Stage(3, frames, config.spatial_compression, [Look(config.input_channels, frames, scale)])]
    for level, (entering, width) in enumerate(pairwise(widths)):
        looks = []
        for index in range(config.level_blocks[level]):
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
    """List the inputs of the decoder that depend on other parts; stages in tiles share one."""
    frames, scale = latents, 1
    multipliers = config.width_multipliers[::-1]
    entering = config.decoder_width * multipliers[0]
    yield Look(config.latent_channels, frames, scale)
    yield from _middle(config, entering, frames)
    stages = []
    for level, multiplier in enumerate(multipliers):
        width, before = config.decoder_width * multiplier, (entering, frames, scale)
        looks = []
        for index in range(config.level_blocks[::-1][level] + 1):
            looks += _block(config, entering if index == 0 else width, width, frames, scale)
        if level < len(config.temporal_downsample):
            frames = 2 * frames - 1 if config.temporal_downsample[::-1][level] else frames
            # The input is upsampled after it has been padded.
            looks.append(Look(width, frames, scale))
            scale *= 2
        stages.append(_Stage(*before, looks))
        entering = width if config.level_shortcuts else width // 2
    stages.append(_Stage(width, frames, scale, [Look(width, frames, scale)]))
    yield from _local(stages, Decoder, config, tiling)


def bytes_sent(looks: Iterable[Look], grid: Grid, part: int, *, itemsize: int, batch: int = 1) -> int:
    """Return the bytes that a part sends during a pass, without its result; `itemsize` is in bytes."""
    return batch * itemsize * sum(look.channels * look.frames * _pixels_sent(look, grid, part) for look in looks)


def _pixels_sent(look: Look, grid: Grid, part: int) -> int:
    others = [other for other in range(grid.rows * grid.columns) if other != part]
    if look.reach is None:
        # The key and the value of each pixel, to all others.
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
        steps = network(config).local_stages()
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
    if config.middle_attention:
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
