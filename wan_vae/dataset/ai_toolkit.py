"""Caches of ai-toolkit: its buckets, its names, and what a file holds.

Facts from ai-toolkit: toolkit/buckets.py (get_bucket_for_image_size), dataloader_mixins.py (BucketsMixin,
LatentCachingFileItemDTOMixin, LatentCachingMixin), metadata.py, data_transfer_object/data_loader.py.
"""

import base64
import hashlib
import json
import math
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wan_vae.io.latents_file import DTYPE_NAMES, LatentsWriter
from wan_vae.io.latents_info import LatentsInfo
from wan_vae.io.safetensors_file import safetensors_header

FOLDER = "_latent_cache"
"""The folder of the files, beside the clips."""

_LATENT_VERSION = 1
_USUAL_FPS = 24  # its default, which its names leave out


def is_of_images(architecture: str) -> bool:
    """Whether a model, by its `arch`, is one of images: its latents are (z, h, w), its sides multiples of 32."""
    return architecture.startswith("qwen_image")


class Placement(NamedTuple):
    """How a picture is brought to its bucket: scaled, then cut."""

    scaled: tuple[int, int]  # width and height
    left: int
    top: int


def toolkit_bucket(width: int, height: int, side: int, step: int) -> tuple[int, int]:
    """Return the width and height that pictures are brought to: about their own shape, at most side x side pixels.

    Pictures with fewer pixels are not enlarged.

    Args:
        width: Of the picture.
        height: Of the picture.
        side: The dataset's `resolution`.
        step: Sides of buckets are multiples of it.
    """
    wanted = min(width * height, side * side)
    scale = (wanted / (width * height)) ** 0.5
    # Its quotients are rounded as they come out of floating point, so they are formed as there.
    sides = [(math.floor(value), math.ceil(value)) for value in (width * scale / step, height * scale / step)]
    sizes = [(wide * step, high * step) for wide, high in product(*sides) if wide and high]
    fitting = [size for size in sizes if size[0] * size[1] <= side * side]
    if not fitting:
        return max(step, sides[0][0] * step), max(step, sides[1][0] * step)
    return min(fitting, key=lambda size: abs(size[0] * size[1] - wanted))


def toolkit_placement(width: int, height: int, bucket: tuple[int, int]) -> Placement:
    """Return how a picture of width x height is brought to a bucket: scaled to cover it, and cut to its center."""
    scale = max(bucket[0] / width, bucket[1] / height)
    scaled = math.ceil(width * scale), math.ceil(height * scale)
    return Placement(scaled, int((scaled[0] - bucket[0]) / 2), int((scaled[1] - bucket[1]) / 2))


def to_toolkit_bucket(picture: NDArray[np.uint8], bucket: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring a picture (height, width, c) to a bucket, by Pillow's bicubic filter: (bucket[1], bucket[0], c)."""
    scaled, left, top = toolkit_placement(picture.shape[1], picture.shape[0], bucket)
    image = Image.fromarray(picture).resize(scaled, Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + bucket[0], top + bucket[1])))


def crop_facts(name: str, original: tuple[int, int], bucket: tuple[int, int], architecture: str) -> dict[str, Any]:
    """Return what the name of an image's cache is made of, which its metadata repeats.

    Args:
        name: The source's file name.
        original: Width and height of the source.
        bucket: Those of its bucket.
        architecture: The model's `arch`, which names the space of latents.
    """
    scaled, left, top = toolkit_placement(*original, bucket)
    return {
        "filename": name,
        "scale_to_width": scaled[0],
        "scale_to_height": scaled[1],
        "crop_x": left,
        "crop_y": top,
        "crop_width": bucket[0],
        "crop_height": bucket[1],
        "latent_space_version": architecture,
        "latent_version": _LATENT_VERSION,
    }


def video_facts(frames: int | None, fps: float | None) -> dict[str, Any]:
    """Return what the name of a video's cache is made of, beside `crop_facts`.

    Args:
        frames: The dataset's `num_frames`; None for `auto_frame_count`.
        fps: The dataset's `fps`; None for its default.
    """
    facts: dict[str, Any] = {"num_frames": frames}
    if frames is None:
        facts = {"auto_frame_count": True, "trim_auto_frame_count_tail": True}
    if fps is not None and fps != _USUAL_FPS:
        facts["fps"] = int(fps) if fps == int(fps) else fps
    return facts


def toolkit_path(clip: Path, facts: dict[str, Any]) -> Path:
    """Return the file in which ai-toolkit looks for the latents of a clip, in the folder of the clip."""
    digest = hashlib.md5(json.dumps(facts, sort_keys=True).encode(), usedforsecurity=False).digest()
    name = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return clip.parent / FOLDER / f"{clip.stem}_{name}.safetensors"


class ToolkitWriter(LatentsWriter):
    """Writes a cache of ai-toolkit; otherwise as `LatentsWriter`.

    Args:
        target: The file.
        facts: What its name is made of.
        frames: The `num_frames` of a video, None for an image.
        timeless: Whether the model is one of images, whose latents are (z, h, w).
    """

    def __init__(self, target: Path, facts: dict[str, Any], frames: int | None, *, timeless: bool) -> None:
        super().__init__(target)
        self._facts, self._count, self._timeless = facts, frames, timeless

    def _write_file(self, file: BinaryIO, info: LatentsInfo, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        stored = (shape[1], *shape[3:]) if self._timeless else shape[1:]
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {"latent": (DTYPE_NAMES[dtype], stored)}
        if self._count is not None:
            tensors["num_frames"] = ("I32", ())
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in self._facts.items()}
        file.write(safetensors_header(tensors, {**texts, "format": "pt"}))
        for plane in self._planes():
            file.write(plane)
        if self._count is not None:
            file.write(self._count.to_bytes(4, "little"))
