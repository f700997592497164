"""Layout and architecture of a checkpoint, from the names and shapes of its tensors, never from the file's name."""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from wan_vae.checkpoints.layouts import LAYOUTS, stored_names
from wan_vae.checkpoints.tensor_files import WRAPPERS
from wan_vae.config import VAEConfig, load_config
from wan_vae.errors import CheckpointError, UserError

Shapes = Mapping[str, tuple[int, ...]]

CONFIG_KEY = "wan_vae.config"
"""Metadata key of our safetensors files that holds the config as JSON."""


# Tensors that show the layout and the architecture, by their names in `WanVAE.state_dict()`.
_LAYOUT_MARK = "decoder.head.norm.gamma"
_ATTENTION = ("encoder.middle.attention.norm.gamma", "decoder.middle.attention.norm.gamma")
_LINEAR_SKIP = ("encoder.linear_skip.later.weight", "decoder.linear_skip.later.weight")  # the same in all layouts
_UPSAMPLING = "decoder.levels.0.upsample.conv.weight"  # where Wan2.2's layouts have it, Wan2.1's have nothing
_WIDTHS = ("encoder.conv_in.weight", _LAYOUT_MARK, "decoder.head.conv.weight", "post_quant_conv.weight")


@cache
def _marks(layout: str) -> dict[str, str]:
    return stored_names([*_ATTENTION, _UPSAMPLING, *_WIDTHS], load_config("wan2.2"), layout)


class Model(NamedTuple):
    """A Wan VAE among the tensors of a file."""

    layout: str
    prefix: str  # of the names of its tensors, such as `model.` in `model.decoder...`


def find_models(shapes: Shapes) -> list[Model]:
    """Return the Wan VAEs among tensors, whole ones if there are any, the one to load first.

    The weights as they were trained come before their moving averages, and names that training programs give to a
    model before all others.

    Raises:
        CheckpointError: There is none, or nothing says which of several is to be loaded.
    """
    models = [
        Model(layout, name.removesuffix(mark))
        for layout in (*LAYOUTS, "wan_vae")
        for mark in [_marks(layout)[_LAYOUT_MARK]]
        for name in shapes
        if name.endswith(mark)
    ]
    whole = [model for model in models if all(name in shapes for name in _width_names(model))]
    found = sorted(whole or models, key=_rank)
    if not found:
        if is_tiny(shapes):
            raise CheckpointError(
                "it is a tiny autoencoder (TAEHV): `encode`, `decode`, `reconstruct` and `info` take it, and in Python"
                " TinyVAE.from_pretrained."
            )
        held = f"it holds {min(shapes)!r}" if shapes else "it holds no tensor at all"
        mark = _marks("wan")[_LAYOUT_MARK]
        raise CheckpointError(f"it is no Wan VAE: {held}, but not {mark!r} or its name in another layout.")
    alike = [repr(model.prefix) for model in found if _rank(model) == _rank(found[0])]
    if len(alike) > 1:
        shown = f"{', '.join(alike[:-1])} and {alike[-1]}" if len(alike) < 9 else f"{', '.join(alike[:8])} and others"
        raise CheckpointError(f"it holds {len(alike)} models, {shown}; save one.")
    return found


def is_tiny(shapes: Shapes) -> bool:
    """Whether tensors are those of a tiny autoencoder, which `TinyVAE` loads."""
    return {"decoder.7.conv.weight", "decoder.22.weight"} <= shapes.keys()


def _rank(model: Model) -> tuple[bool, tuple[int, ...]]:
    keys = [key for key in model.prefix.split(".") if key]
    return is_average(model), tuple(WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) for key in keys)


def is_average(model: Model) -> bool:
    """Whether the name of a model says that its weights are a moving average over the training."""
    return re.search(r"(^|[._])(ema|average|averaged|shadow|swa)([._]|$)", model.prefix.lower()) is not None


def _width_names(model: Model) -> list[str]:
    return [model.prefix + _marks(model.layout)[name] for name in _WIDTHS]


def config_of(
    model: Model, shapes: Shapes, metadata: Mapping[str, str], diffusers_config: Mapping[str, Any] | None
) -> tuple[VAEConfig, bool]:
    """Return the architecture of a model, and whether the statistics of its latents are known.

    They are told by `diffusers_config`, else by the metadata, else by the shapes of the tensors.

    Raises:
        UserError: A config is not possible, or describes far more weights than there are.
        ArithmeticError, IndexError, TypeError, ValueError: Shapes or config do not describe such a network.
    """
    if diffusers_config is None and CONFIG_KEY not in metadata:
        return _config_from_shapes(shapes, model)
    # config.json takes precedence over the metadata, since users edit it.
    if diffusers_config is not None:
        config = config_from_diffusers(diffusers_config)
    else:
        config = VAEConfig.from_dict(json.loads(metadata[CONFIG_KEY]), origin=f"its metadata {CONFIG_KEY!r}")
    convolutions = sum(2 * blocks + 1 for blocks in config.level_blocks)
    convolutions *= config.dense_layers if config.block == "dense" else 1
    if convolutions > len(shapes):
        raise CheckpointError(
            f"its config describes {convolutions} convolutions or more, and there are {len(shapes)} tensors."
        )
    return config, True


def _config_from_shapes(shapes: Shapes, model: Model) -> tuple[VAEConfig, bool]:
    (layout, prefix), wanted = model, _width_names(model)
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise CheckpointError(f"it is half a checkpoint: it lacks {missing[0]!r}.")
    encoder_in, decoder_norm, decoder_out, latents_in = (shapes[name] for name in wanted)
    structure: dict[str, Any] = {"level_shortcuts": prefix + _marks(layout)[_UPSAMPLING] in shapes}
    if layout == "wan_vae":  # the names are the same in both architectures
        structure = _structure(shapes, prefix, encoder_in[0])
    # Either half tells, so that a damaged file is one that lacks something, not one that has too much.
    structure["linear_skip"] = any(prefix + name in shapes for name in _LINEAR_SKIP)
    structure["middle_attention"] = any(prefix + _marks(layout)[name] in shapes for name in _ATTENTION)
    images_only = math.prod(encoder_in[2:-2]) == 1  # a kernel without past frames, or without the dimension of time
    published = "qwen-image-2.1" if images_only else "wan2.2" if structure["level_shortcuts"] else "wan2.1"
    base = load_config(published)
    latent_channels = latents_in[1]
    count = min(latent_channels, 4096)  # a shape says what it likes; `VAEConfig` refuses more
    image_channels = 4 if _is_square(encoder_in[1], 4) else 3
    patch_size = _root(encoder_in[1] // image_channels)
    values = base.to_dict() | structure | {
        "latent_channels": latent_channels,
        "encoder_width": encoder_in[0],
        "decoder_width": decoder_norm[0],
        "patch_size": patch_size,
        "output_upscale": _root(decoder_out[0] // (image_channels * patch_size**2)),
        "image_channels": image_channels,
        "images_only": images_only,
        "latent_mean": (0.0,) * count,
        "latent_std": (1.0,) * count,
    }  # fmt: skip
    config = VAEConfig.from_dict(values, origin="the shape of its tensors")
    # Models pruned from a published one keep its latents; any other structure has its own.
    known = all(getattr(config, name) == getattr(base, name) for name in ("latent_channels", *structure))
    if known:
        config = dataclasses.replace(config, latent_mean=base.latent_mean, latent_std=base.latent_std)
    return config, known


def _structure(shapes: Shapes, prefix: str, encoder_width: int) -> dict[str, Any]:
    """Return the number and kind of the levels of a model with our own names."""
    levels = f"{prefix}encoder.levels."
    if f"{levels}0.blocks.0.norm1.gamma" not in shapes:
        raise CheckpointError("its residual blocks are not Wan's; store it with WanVAE.save, which keeps the config.")
    widths = [shape[0] for shape in _numbered(shapes, levels, ".blocks.0.conv2.weight")]
    upsampling = shapes.get(prefix + _UPSAMPLING, (1, 0))
    return {
        "width_multipliers": [width // encoder_width for width in widths],
        "blocks_per_level": [
            len(_numbered(shapes, f"{levels}{level}.blocks.", ".conv2.weight")) for level in range(len(widths))
        ],
        "temporal_downsample": [
            f"{levels}{level}.downsample.time_conv.weight" in shapes for level in range(len(widths) - 1)
        ],
        "level_shortcuts": upsampling[0] == upsampling[1],  # without, upsampling halves the width
    }


def _numbered(shapes: Shapes, before: str, after: str) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors with 0, 1 and so on in a name, up to the first that is missing."""
    names = (f"{before}{number}{after}" for number in itertools.count())
    return [shapes[name] for name in itertools.takewhile(lambda name: name in shapes, names)]


def _is_square(value: int, factor: int) -> bool:
    return value % factor == 0 and _root(value // factor) ** 2 * factor == value


def _root(square: int) -> int:
    return max(1, round(square**0.5))


QWEN_IMAGE_21 = "AutoencoderKLQwenImage21"
"""diffusers' class of Qwen-Image-2.1's VAE, whose convolutions have no dimension of time."""

DIFFUSERS_FIELDS = {
    "latent_channels": "z_dim",
    "encoder_width": "base_dim",
    "decoder_width": "decoder_base_dim",
    "width_multipliers": "dim_mult",
    "blocks_per_level": "num_res_blocks",
    "temporal_downsample": "temperal_downsample",
    "level_shortcuts": "is_residual",
    "patch_size": "patch_size",
    "dropout": "dropout",
    "latent_mean": "latents_mean",
    "latent_std": "latents_std",
}


def config_from_diffusers(values: Mapping[str, Any]) -> VAEConfig:
    """Return the config of an `AutoencoderKLWan`, `AutoencoderKLQwenImage` or `AutoencoderKLQwenImage21`."""
    if values.get("attn_scales"):
        scales = values["attn_scales"]
        raise CheckpointError(f"its config.json asks for attention at scales {scales}; only [] is known.")
    found: dict[str, Any] = {"patch_size": 1, "level_shortcuts": False, "dropout": 0.0, "block": "wan"}
    found["decoder_width"] = values.get("base_dim")
    found |= {here: values[there] for here, there in DIFFUSERS_FIELDS.items() if values.get(there) is not None}
    area = found["patch_size"] ** 2
    entering = values.get("in_channels") or values.get("input_channels") or 3 * area
    found["image_channels"] = entering // area
    found["output_upscale"] = _root((values.get("out_channels") or entering) // entering)
    found["images_only"] = values.get("_class_name") == QWEN_IMAGE_21
    return VAEConfig.from_dict(found, origin="its config.json")


def config_to_diffusers(config: VAEConfig) -> dict[str, Any]:
    """Return the `config.json` with which diffusers builds the same network.

    Raises:
        UserError: diffusers has no such structure.
    """
    if config.block != "wan":
        raise UserError(f"diffusers has no residual block of kind {config.block!r}; save with layout 'wan'.")
    if config.linear_skip:
        raise UserError("diffusers has no linear skip around encoder and decoder; save with layout 'wan'.")
    if not config.middle_attention:
        raise UserError("diffusers always has attention at the lowest resolution; save with layout 'wan'.")
    if not isinstance(config.blocks_per_level, int):
        raise UserError(
            f"diffusers has as many residual blocks in every level, and blocks_per_level is"
            f" {list(config.blocks_per_level)}; save with layout 'wan'."
        )
    values = config.to_dict()
    fields = {there: values[here] for here, there in DIFFUSERS_FIELDS.items()} | {"attn_scales": []}
    is_layered = config.image_channels == config.output_channels == 4 and config.decoder_width == config.encoder_width
    if is_layered and not (config.level_shortcuts or config.images_only):
        # Qwen-Image-Layered's pipeline takes no other class, and this one takes no other structure.
        for name in ("decoder_base_dim", "is_residual", "patch_size"):
            del fields[name]
        return fields | {"_class_name": "AutoencoderKLQwenImage", "input_channels": config.image_channels}
    return fields | {
        "_class_name": QWEN_IMAGE_21 if config.images_only else "AutoencoderKLWan",
        "in_channels": config.input_channels,
        "out_channels": config.output_channels,
        "patch_size": None if config.patch_size == 1 else config.patch_size,
        "scale_factor_spatial": config.spatial_compression,
        "scale_factor_temporal": 2 ** sum(config.temporal_downsample),
    }
