"""What a checkpoint is, told from its tensors' names and shapes, never from its file's name."""

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from wan_vae.config import VAEConfig, load_config
from wan_vae.errors import CheckpointError, UserError

Shapes = Mapping[str, tuple[int, ...]]

CONFIG_KEY = "wan_vae.config"
"""Where our own safetensors files keep the config, as JSON, in their metadata."""


class Marks(NamedTuple):
    """The tensors by which a layout is known and its widths are read."""

    mark: str
    nested_mark: str
    encoder_in: str
    decoder_norm: str
    decoder_out: str
    latents_in: str


MARKS = {
    "wan": Marks(
        mark="decoder.middle.1.norm.gamma",
        nested_mark="decoder.upsamples.0.upsamples.3.resample.1.weight",
        encoder_in="encoder.conv1.weight",
        decoder_norm="decoder.head.0.gamma",
        decoder_out="decoder.head.2.weight",
        latents_in="conv2.weight",
    ),
    "diffusers": Marks(
        mark="decoder.mid_block.attentions.0.norm.gamma",
        nested_mark="decoder.up_blocks.0.upsampler.resample.1.weight",
        encoder_in="encoder.conv_in.weight",
        decoder_norm="decoder.norm_out.gamma",
        decoder_out="decoder.conv_out.weight",
        latents_in="post_quant_conv.weight",
    ),
}


class Detected(NamedTuple):
    """A layout, the prefix before its names (as in `model.decoder...`), and the architecture."""

    layout: str
    prefix: str
    config: VAEConfig


def detect(shapes: Shapes, metadata: Mapping[str, str], diffusers_config: Mapping[str, Any] | None) -> Detected:
    """Recognize a checkpoint.

    Args:
        shapes: The shape of every tensor in the file.
        metadata: The metadata of a safetensors file; ours carry the config.
        diffusers_config: The `config.json` beside a file in a diffusers folder.

    Raises:
        UserError: It is in no layout of a Wan VAE, or holds several models.
        ArithmeticError, IndexError, TypeError, ValueError: Shapes or config are of no such network.
    """
    for layout, marks in MARKS.items():
        prefixes = [name.removesuffix(marks.mark) for name in shapes if name.endswith(marks.mark)]
        if len(prefixes) > 1:
            raise CheckpointError(f"it holds {len(prefixes)} models, {' and '.join(map(repr, prefixes))}; save one.")
        if prefixes:
            # A config.json is there to be edited, so it counts more than what we wrote into the file.
            if diffusers_config is not None:
                config = config_from_diffusers(diffusers_config)
            elif CONFIG_KEY in metadata:
                config = VAEConfig.from_dict(json.loads(metadata[CONFIG_KEY]), origin=f"its metadata {CONFIG_KEY!r}")
            else:
                config = _config_from_shapes(shapes, prefixes[0], marks)
            return Detected(layout, prefixes[0], config)
    held = f"it holds {min(shapes)!r}" if shapes else "it holds no tensor at all"
    raise CheckpointError(f"it is no Wan VAE: {held}, but not {MARKS['wan'].mark!r} or its diffusers name.")


def _config_from_shapes(shapes: Shapes, prefix: str, marks: Marks) -> VAEConfig:
    wanted = (marks.encoder_in, marks.decoder_norm, marks.decoder_out, marks.latents_in)
    missing = [name for name in wanted if prefix + name not in shapes]
    if missing:
        raise CheckpointError(f"it is half a checkpoint: it lacks {prefix + missing[0]!r}.")
    encoder_in, decoder_norm, decoder_out, latents_in = (shapes[prefix + name] for name in wanted)
    nested = prefix + marks.nested_mark in shapes
    base = load_config("wan2.2" if nested else "wan2.1")
    latent_channels = latents_in[1]
    patch_size = _root(encoder_in[1] // 3)
    if latent_channels == base.latent_channels:
        mean, std = base.latent_mean, base.latent_std
    else:
        logging.getLogger("wan_vae").warning(
            f"Nothing says what the mean and spread of these {latent_channels} latent channels are: final latents will"
            " be the raw ones."
        )
        mean, std = (0.0,) * latent_channels, (1.0,) * latent_channels
    values = base.to_dict() | {
        "latent_channels": latent_channels,
        "encoder_width": encoder_in[0],
        "decoder_width": decoder_norm[0],
        "patch_size": patch_size,
        "output_upscale": _root(decoder_out[0] // (3 * patch_size**2)),
        "latent_mean": mean,
        "latent_std": std,
    }
    return VAEConfig.from_dict(values, origin="the shape of its tensors")


def _root(square: int) -> int:
    return max(1, round(square**0.5))


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
    """Read the `config.json` of diffusers' `AutoencoderKLWan` or `AutoencoderKLQwenImage`."""
    if values.get("attn_scales"):
        raise CheckpointError(
            f"its config.json asks for attention at scales {values['attn_scales']}; only [] is known."
        )
    found = {here: values[there] for here, there in DIFFUSERS_FIELDS.items() if values.get(there) is not None}
    found.setdefault("decoder_width", found.get("encoder_width"))
    found.setdefault("patch_size", 1)
    found.setdefault("level_shortcuts", False)
    found.setdefault("dropout", 0.0)
    pixels = values.get("out_channels") or 3 * found["patch_size"] ** 2
    found["output_upscale"] = _root(pixels // (3 * found["patch_size"] ** 2))
    return VAEConfig.from_dict(found | {"block": "wan"}, origin="its config.json")


def config_to_diffusers(config: VAEConfig) -> dict[str, Any]:
    """Write the `config.json` with which `AutoencoderKLWan.from_pretrained` builds the same network.

    Raises:
        UserError: diffusers has no such residual block.
    """
    if config.block != "wan":
        raise UserError(f"diffusers has no residual block of kind {config.block!r}; save with layout 'wan'.")
    values = config.to_dict()
    return {there: values[here] for here, there in DIFFUSERS_FIELDS.items()} | {
        "_class_name": "AutoencoderKLWan",
        "attn_scales": [],
        "in_channels": config.input_channels,
        "out_channels": config.output_channels,
        "patch_size": None if config.patch_size == 1 else config.patch_size,
        "scale_factor_spatial": config.spatial_compression,
        "scale_factor_temporal": config.temporal_compression,
    }
