"""Names of the weights in each layout, as tables that serve both reading and writing.

Layouts differ in the names of the weights, and where diffusers' convolutions have no dimension of time, in the shapes.
"wan" has the names of Wan's own files, "diffusers" those of `AutoencoderKLWan`, and "wan_vae" (read, but not written)
those of `WanVAE.state_dict()`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError

LAYOUTS = ("wan", "diffusers")
"""The layouts that checkpoints are written in."""


class Names(NamedTuple):
    """A module's name in each layout, and the names of its submodules."""

    wan_vae: str
    wan: str
    diffusers: str
    parts: "tuple[Names, ...]" = ()


WAN_BLOCK = (
    Names("norm1", "residual.0", "norm1"),
    Names("conv1", "residual.2", "conv1"),
    Names("norm2", "residual.3", "norm2"),
    Names("conv2", "residual.6", "conv2"),
    Names("shortcut", "shortcut", "conv_shortcut"),
)
RESAMPLE = (Names("conv", "resample.1", "resample.1"), Names("time_conv", "time_conv", "time_conv"))
TOP = (Names("quant_conv", "conv1", "quant_conv"), Names("post_quant_conv", "conv2", "post_quant_conv"))


def stored_names(names: list[str], config: VAEConfig, layout: str) -> dict[str, str]:
    """Return each weight's name in a layout by its name in `state_dict()`.

    Raises:
        UserError: A weight is of no part of the architecture.
    """
    column = Names._fields.index(layout)
    prefixes = {}
    for module in _modules(config):
        prefixes[f"{module.wan_vae}."] = f"{module[column]}."
        for part in module.parts:
            prefixes[f"{module.wan_vae}.{part.wan_vae}."] = f"{module[column]}.{part[column]}."
    stored = {}
    for name in names:
        parts = name.split(".")[:-1]
        while parts and ".".join(parts) + "." not in prefixes:  # the longest that fits
            parts.pop()
        if not parts:
            raise UserError(
                f"The weight {name} is of no part of a Wan VAE; only what `WanVAE` consists of can be stored."
            )
        prefix = ".".join(parts) + "."
        stored[name] = prefixes[prefix] + name[len(prefix) :]
    return stored


def stored_shape(shape: tuple[int, ...], config: VAEConfig, layout: str) -> tuple[int, ...]:
    """Return the shape in a layout of a weight of this shape in `state_dict()`."""
    is_flat = config.images_only and layout == "diffusers" and len(shape) == 5
    return shape[:2] + shape[3:] if is_flat else shape


def _modules(config: VAEConfig) -> Iterator[Names]:
    # Blocks of the other kinds exist in this package only, so they keep their names.
    block = WAN_BLOCK if config.block in ("wan", "plain") else ()
    yield from TOP
    blocks = config.level_blocks
    for side, way, counts in (("encoder", "down", blocks), ("decoder", "up", [count + 1 for count in blocks[::-1]])):
        stages = (*_stages(block), Names("linear_skip", "linear_skip", "linear_skip"))
        for names in (*stages, *_levels(config, way, counts, block)):
            wan_vae, wan, diffusers = (f"{side}.{name}" for name in names[:3])
            yield Names(wan_vae, wan, diffusers, names.parts)


def _stages(block: tuple[Names, ...]) -> Iterator[Names]:
    yield Names("conv_in", "conv1", "conv_in")
    yield Names("middle.block1", "middle.0", "mid_block.resnets.0", block)
    yield Names("middle.attention", "middle.1", "mid_block.attentions.0")
    yield Names("middle.block2", "middle.2", "mid_block.resnets.1", block)
    yield Names("head.norm", "head.0", "norm_out")
    yield Names("head.conv", "head.2", "conv_out")


def _levels(config: VAEConfig, way: str, counts: Sequence[int], block: tuple[Names, ...]) -> Iterator[Names]:
    """Yield the modules of the encoder's levels, `way` "down", or the decoder's, "up", with `counts` of blocks."""
    before = 0
    for level, blocks in enumerate(counts):
        diffusers = [f"{way}_blocks.{level}.resnets.{item}" for item in range(blocks)]
        if config.level_shortcuts:
            wan = [f"{way}samples.{level}.{way}samples.{item}" for item in range(blocks + 1)]
            diffusers.append(f"{way}_blocks.{level}.{way}sampler")
        else:  # blocks and resampling modules of all levels are numbered consecutively, in diffusers only the encoder's
            run = range(before, before := before + blocks + 1)
            wan = [f"{way}samples.{item}" for item in run]
            diffusers.append(f"{way}_blocks.{level}.{way}samplers.0")
            if way == "down":
                diffusers = [f"down_blocks.{item}" for item in run]
        for item in range(blocks):
            yield Names(f"levels.{level}.blocks.{item}", wan[item], diffusers[item], block)
        yield Names(f"levels.{level}.{way}sample", wan[blocks], diffusers[blocks], RESAMPLE)
