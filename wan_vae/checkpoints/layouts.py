"""Names of the weights in each layout, as tables that are read in both directions.

A layout is a name for every weight of `WanVAE.state_dict()`; nothing else differs, not even a shape.
"""

from collections.abc import Iterator
from typing import NamedTuple

from wan_vae.config import VAEConfig

LAYOUTS = ("wan", "diffusers")


class Names(NamedTuple):
    """One module's name here, in Wan's own files, and in diffusers' `AutoencoderKLWan`."""

    here: str
    wan: str
    diffusers: str


TOP = (
    Names("quant_conv", "conv1", "quant_conv"),
    Names("post_quant_conv", "conv2", "post_quant_conv"),
)
# Of the encoder and of the decoder alike.
STAGES = (
    Names("conv_in", "conv1", "conv_in"),
    Names("middle.block1", "middle.0", "mid_block.resnets.0"),
    Names("middle.attention", "middle.1", "mid_block.attentions.0"),
    Names("middle.block2", "middle.2", "mid_block.resnets.1"),
    Names("head.norm", "head.0", "norm_out"),
    Names("head.conv", "head.2", "conv_out"),
)
# Of the blocks of Wan's kind. The other kinds have no names but ours.
BLOCK = (
    Names("norm1", "residual.0", "norm1"),
    Names("conv1", "residual.2", "conv1"),
    Names("norm2", "residual.3", "norm2"),
    Names("conv2", "residual.6", "conv2"),
    Names("shortcut", "shortcut", "conv_shortcut"),
)
RESAMPLE = (
    Names("conv", "resample.1", "resample.1"),
    Names("time_conv", "time_conv", "time_conv"),
)


def stored_names(names: list[str], config: VAEConfig, layout: str) -> dict[str, str]:
    """Map each weight's name in `state_dict()` to its name in a layout."""
    column = 1 + LAYOUTS.index(layout)
    modules = {row.here: row[column] for row in _modules(config)}
    parts = {f".{row.here}.": f".{row[column]}." for row in (*BLOCK, *RESAMPLE)}
    return {name: _rename(name, modules, parts, config) for name in names}


def _rename(name: str, modules: dict[str, str], parts: dict[str, str], config: VAEConfig) -> str:
    module = next(here for here in modules if name.startswith(f"{here}."))
    rest = name[len(module) :]
    is_part = ".blocks." in module or ".block" in module
    if "sample" in module or (is_part and config.block in ("wan", "plain")):
        part = next(here for here in parts if rest.startswith(here))
        rest = parts[part] + rest[len(part) :]
    return modules[module] + rest


def _modules(config: VAEConfig) -> Iterator[Names]:
    yield from TOP
    for side in ("encoder", "decoder"):
        for stage in STAGES:
            yield Names(*(f"{side}.{name}" for name in stage))
    yield from _encoder_levels(config)
    yield from _decoder_levels(config)


def _encoder_levels(config: VAEConfig) -> Iterator[Names]:
    blocks = config.blocks_per_level
    flat = 0  # Wan2.1 numbers blocks and downsamplings of all levels in one run, in both layouts.
    for level in range(len(config.width_multipliers)):
        here = f"encoder.levels.{level}"
        for block in range(blocks):
            if config.level_shortcuts:
                wan, diffusers = f"downsamples.{level}.downsamples.{block}", f"down_blocks.{level}.resnets.{block}"
            else:
                wan, diffusers = f"downsamples.{flat + block}", f"down_blocks.{flat + block}"
            yield Names(f"{here}.blocks.{block}", f"encoder.{wan}", f"encoder.{diffusers}")
        if config.level_shortcuts:
            wan, diffusers = f"downsamples.{level}.downsamples.{blocks}", f"down_blocks.{level}.downsampler"
        else:
            wan, diffusers = f"downsamples.{flat + blocks}", f"down_blocks.{flat + blocks}"
        yield Names(f"{here}.downsample", f"encoder.{wan}", f"encoder.{diffusers}")
        flat += blocks + 1


def _decoder_levels(config: VAEConfig) -> Iterator[Names]:
    blocks = config.blocks_per_level + 1
    for level in range(len(config.width_multipliers)):
        here = f"decoder.levels.{level}"
        for item in range(blocks + 1):
            wan = (
                f"upsamples.{level}.upsamples.{item}"
                if config.level_shortcuts
                else (f"upsamples.{level * (blocks + 1) + item}")
            )
            if item < blocks:
                yield Names(f"{here}.blocks.{item}", f"decoder.{wan}", f"decoder.up_blocks.{level}.resnets.{item}")
            else:
                upsampler = "upsampler" if config.level_shortcuts else "upsamplers.0"
                yield Names(f"{here}.upsample", f"decoder.{wan}", f"decoder.up_blocks.{level}.{upsampler}")
