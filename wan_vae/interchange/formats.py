"""How other programs store latents: names of files, keys, shapes, dtypes, and raw or normalized values.

Facts from: ComfyUI, nodes.py (SaveLatent, LoadLatent); musubi-tuner, dataset/cache_io.py and image_video_dataset.py;
FastVideo, dataset/latent_datasets.py; ai-toolkit, dataloader_mixins.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch

from wan_vae.arguments import shown
from wan_vae.config import VAEConfig
from wan_vae.errors import LatentsError, UserError
from wan_vae.io.clip import ClipInfo
from wan_vae.io.color import RGB
from wan_vae.io.latents_info import LatentsInfo

Values: TypeAlias = Literal["raw", "normalized"]

VALUES_KEY = "wan_vae.values"
"""Metadata with which our bare safetensors tensors say whether they are raw or normalized."""

UNKNOWN_WEIGHTS = "unknown"
"""The `checkpoint` of latents whose file does not name the weights that encoded them."""

COMFYUI_TENSOR, COMFYUI_VERSION = "latent_tensor", "latent_format_version_0"
AI_TOOLKIT_TENSOR, AI_TOOLKIT_VERSION = "latent", "latent_space_version"
MUSUBI_ARCHITECTURES = ("wan", "qwen_image", "qwen_image_edit", "qwen_image_layered", "krea2")
MUSUBI_MASK = 4  # channels that tell which frames are given, before those of latents_image
MUSUBI_TENSOR = re.compile(r"latents_\d+x\d+x\d+_[a-z0-9]+")

USUAL_NAMES = ("latents", "latent", "samples", "sample", "latent_tensor", "vae_latent", "z", "x")
"""Names of latents in dictionaries and safetensors files; the first that is there is taken."""

OURS = "wan-vae"
_MUSUBI_CHANNELS, _MUSUBI_STEP = 16, 16  # latent channels; pixels between two sizes of buckets


@dataclass(frozen=True)
class Format:
    """A format of another program.

    Attributes:
        title: What messages and `wan-vae info` call a file of it.
        suffixes: Suffixes of its files; "" for a folder, in which files get their names by a rule.
        values: Whether its values are raw or normalized; None where a file may hold either.
        dtype: What it is written in; None for what the model computed in, float32 for raw values.
        batch: Whether the tensor is (1, z, t, h, w) rather than (z, t, h, w).
        writable: Whether we write a file of it, rather than only caches.
    """

    title: str
    suffixes: tuple[str, ...] = ()
    values: Values | None = None
    dtype: torch.dtype | None = None
    batch: bool = False
    writable: bool = True


FORMATS = {
    "comfyui": Format("a latent of ComfyUI", (".latent",), "raw", torch.float32, batch=True),
    "musubi": Format("a cache of musubi-tuner", ("",), "normalized", torch.bfloat16),
    "fastvideo": Format("a tensor of FastVideo", (".pt", ".pth"), "raw", torch.float32),
    "tensor": Format("a bare tensor", (".pt", ".pth", ".npy", ".safetensors"), batch=True),
    "ai-toolkit": Format("a cache of ai-toolkit", (".safetensors",), "normalized", writable=False),
    "simpletuner": Format("a cache of SimpleTuner", (".pt",), "normalized", writable=False),
}
LATENTS_SUFFIXES = frozenset(suffix for form in FORMATS.values() for suffix in form.suffixes if suffix)
FORMAT_NAMES = (OURS, *(name for name, form in FORMATS.items() if form.writable))


def check_values(values: object) -> None:
    """Raise a UserError unless `values` is "raw", "normalized" or None."""
    if values is not None and values not in get_args(Values):
        raise UserError(f"values is {shown(values)}; it must be raw or normalized.")


def output_format(path: Path, name: str | None, values: Values | None) -> str:
    """Return the name of the format that a file is written in: the one asked for, or that of its extension.

    Raises:
        UserError: There is no such format, it has other extensions, or its values are not those asked for.
    """
    suffix = path.suffix.lower()
    if name is None:
        name = {".latent": "comfyui", ".pt": "tensor", ".pth": "tensor", ".npy": "tensor"}.get(suffix, OURS)
    if name not in FORMAT_NAMES:
        raise UserError(f"format is {shown(name)}; the formats are {', '.join(FORMAT_NAMES)}.")
    form = FORMATS.get(name)
    stored = "normalized" if form is None else form.values
    if values is not None and stored not in (None, values):
        raise UserError(f"The format {name} holds {stored} latents, not {values} ones; --format tensor holds either.")
    if form is not None and suffix not in form.suffixes:
        suffixes = " or ".join(form.suffixes)
        kind = (
            f"a file that ends in {suffixes}" if suffixes else "a folder; the file in it is named as musubi-tuner does"
        )
        raise UserError(f"{path} cannot be written in the format {name}, which takes {kind}.")
    return name


def musubi_path(folder: Path, clip: Path, info: ClipInfo, start: int, original: tuple[int, int] | None = None) -> Path:
    """Return the file in which musubi-tuner looks for the latents of a clip, or of an image, in its cache folder.

    Args:
        folder: The cache folder.
        clip: The source; its stem begins the name.
        info: Its properties after all options.
        start: The first frame that is encoded.
        original: Width and height of an image before it was brought to its bucket; its name has these.

    Raises:
        LatentsError: Its training would not accept latents of this size or length.
    """
    width, height = info.width, info.height
    if width % _MUSUBI_STEP or height % _MUSUBI_STEP or (info.frames - 1) % 4:
        fit = tuple(max(_MUSUBI_STEP, side // _MUSUBI_STEP * _MUSUBI_STEP) for side in (width, height))
        frames = (info.frames - 1) // 4 * 4 + 1
        raise LatentsError(
            f"{clip} has {info.frames} frames of {width}x{height}; musubi-tuner trains on 4n + 1 frames and on sides"
            f" that are multiples of {_MUSUBI_STEP}: give --frames {start}:{start + frames} and --size"
            f" {fit[0]}x{fit[1]}, or what its dataset's buckets ask for."
        )
    if start < 0:
        raise LatentsError("--frames counts from the end; musubi-tuner names files by the first frame: count from 0.")
    position = "" if info.container == "image" and info.frames == 1 else f"{start:05d}-{info.frames:03d}_"
    width, height = original or (width, height)
    return folder / f"{clip.stem}_{position}{width:04d}x{height:04d}_wan.safetensors"


def check_musubi(channels: int) -> None:
    """Raise a LatentsError for a model that musubi-tuner's Wan training has no place for."""
    if channels != _MUSUBI_CHANNELS:
        raise LatentsError(
            f"musubi-tuner trains on latents of {_MUSUBI_CHANNELS} channels; this model's have {channels}."
        )


def musubi_metadata(width: int, height: int, frames: int, *, image: bool) -> dict[str, str]:
    """Return the metadata of a cache of musubi-tuner."""
    count = {} if image else {"frame_count": str(frames)}
    return {"architecture": "wan", "width": str(width), "height": str(height), "format_version": "1.0.1", **count}


def clip_of(shape: tuple[int, ...], config: VAEConfig, fps: Fraction) -> LatentsInfo:
    """Return the properties of the clip that a model decodes latents (1, z, t, h, w) to, where no file tells more."""
    _, _, frames, height, width = shape
    return LatentsInfo(
        frames=1 + (frames - 1) * config.temporal_compression,
        width=width * config.spatial_compression,
        height=height * config.spatial_compression,
        fps=fps,
        pixel_aspect=Fraction(1),
        color=RGB,
        config=config,
        checkpoint=UNKNOWN_WEIGHTS,
    )


def lost_properties(info: ClipInfo, config: VAEConfig) -> list[str]:
    """Return what no format but our own keeps of a clip that a model encodes."""
    side, unit = config.spatial_compression, config.temporal_compression
    frames, width, height = info.frames, info.width, info.height
    padded = 1 + -(-(frames - 1) // unit) * unit, -(-width // side) * side, -(-height // side) * side
    lost = [f"frame rate, {info.fps}"] if frames > 1 else []
    if padded != (frames, width, height):
        lost.append(
            f"size before padding, {frames} frames of {width}x{height} (it decodes to {padded[0]} of"
            f" {padded[1]}x{padded[2]})"
        )
    return lost


def recognize(names: tuple[str, ...], metadata: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the format of a file by its tensors' names and its metadata, and the name of the tensor of latents.

    The name is None in a bare file: `usual_name` chooses it.

    Raises:
        LatentsError: It is of another program, but no latents of a Wan VAE, or our own, but damaged.
    """
    if {"config", "fps", "frames"} <= metadata.keys():
        raise LatentsError("its metadata is that of a latents file of this package, but damaged.")
    if COMFYUI_TENSOR in names and COMFYUI_VERSION in names:
        return "comfyui", COMFYUI_TENSOR
    caches = [name for name in names if MUSUBI_TENSOR.fullmatch(name)]
    architecture = metadata.get("architecture")
    if len(caches) == 1 and architecture is not None:
        if architecture not in MUSUBI_ARCHITECTURES:
            raise LatentsError(
                f"it is a cache of musubi-tuner for {architecture!r}; those of"
                f" {', '.join(MUSUBI_ARCHITECTURES)} hold latents of a Wan VAE."
            )
        if architecture == "qwen_image_layered" and not caches[0].startswith("latents_1x"):
            raise LatentsError(
                "it is a cache of musubi-tuner for 'qwen_image_layered', several layers that are pictures of their own;"
                " save each as (1, z, 1, h, w)."
            )
        return "musubi", caches[0]
    if AI_TOOLKIT_TENSOR in names and AI_TOOLKIT_VERSION in metadata:
        return "ai-toolkit", AI_TOOLKIT_TENSOR
    return "tensor", None


def usual_name(names: list[str]) -> str | None:
    """Return the name of the latents among those of tensors that could be them, None if nothing tells."""
    if len(names) == 1:
        return names[0]
    for usual in USUAL_NAMES:
        found = [name for name in names if name.rpartition(".")[2] == usual]
        if found:
            return found[0] if len(found) == 1 else None
    return None
