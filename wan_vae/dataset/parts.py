"""Which frames of a clip, and at which size, become one item of a data set.

The rules of buckets and of extraction are those of musubi-tuner (dataset/bucket.py, image_video_dataset.py), whose
training looks for exactly these sizes and lengths; other trainers read the sizes from the tensors.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wan_vae.errors import UserError

Extraction: TypeAlias = Literal["head", "chunk", "slide", "uniform", "full"]
STEP = 16  # pixels between two sizes of buckets


class Part(NamedTuple):
    """Some consecutive frames of a clip."""

    start: int
    frames: int


@dataclass(frozen=True)
class Extract:
    """How clips are cut.

    Attributes:
        extraction: "head": from the first frame on, once for each target length; "chunk": one after the other; "slide":
            every `stride` frames; "uniform": `samples` of them, evenly spaced; "full": the whole clip, up to
            `most_frames`.
        target_frames: Lengths of parts, which are rounded down to 1 + 4k; of no use for "full".
        stride: Frames from one part to the next with "slide".
        samples: Parts with "uniform".
        most_frames: Most frames with "full".
    """

    extraction: Extraction = "head"
    target_frames: tuple[int, ...] = ()
    stride: int = 1
    samples: int = 1
    most_frames: int = 129

    def __post_init__(self) -> None:
        if self.extraction not in get_args(Extraction):
            known = ", ".join(get_args(Extraction))
            raise UserError(f"extraction is {self.extraction!r}; it must be {known}.")
        for name in ("stride", "samples", "most_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be a whole number above 0.")
        if any(target < 1 for target in self.target_frames):
            raise UserError(f"target_frames is {list(self.target_frames)}; lengths are whole numbers above 0.")
        if self.extraction != "full" and not self.target_frames:
            raise UserError(f"extraction is {self.extraction!r}, which needs the lengths of parts: give target_frames.")

    def parts(self, frames: int, unit: int) -> list[Part]:
        """Return the parts of a clip, in the order of their first frames; none if it is shorter than all targets.

        Args:
            frames: Of the clip.
            unit: Frames per latent; lengths are rounded down to 1 + k times that.
        """
        if self.extraction == "full":
            return [Part(0, _rounded(min(frames, self.most_frames), unit))]
        found: set[Part] = set()
        for target in sorted({_rounded(target, unit) for target in self.target_frames}):
            last = frames - target
            if last < 0:
                continue
            if self.extraction == "chunk":
                starts = list(range(0, last + 1, target))
            elif self.extraction == "slide":
                starts = list(range(0, last + 1, self.stride))
            elif self.extraction == "uniform" and self.samples > 1:
                starts = [int(start) for start in np.linspace(0, last, self.samples, dtype=int)]
            else:
                starts = [0]
            found |= {Part(start, target) for start in starts}
        return sorted(found)


def _rounded(frames: int, unit: int) -> int:
    return 1 + (frames - 1) // unit * unit


def bucket_sizes(width: int, height: int, step: int = STEP) -> list[tuple[int, int]]:
    """Return the sizes of the area of width x height, both sides multiples of `step`, as musubi-tuner has them."""
    area = width * height
    side = int(area**0.5)
    sizes = set()
    for first in range(max(step, side // 2 // step * step), side + step, step):
        second = area // first // step * step
        if second:
            sizes |= {(first, second), (second, first)}
    return sorted(sizes)


def choose_bucket(width: int, height: int, resolution: tuple[int, int], *, upscale: bool) -> tuple[int, int]:
    """Return the size that pictures of width x height are brought to: the bucket of the nearest aspect.

    Args:
        width: Of the pictures.
        height: Of the pictures.
        resolution: Width and height whose area the buckets have.
        upscale: Whether pictures smaller than that are enlarged; else their sides are rounded down.
    """
    if not upscale and width * height <= resolution[0] * resolution[1]:
        return max(STEP, width // STEP * STEP), max(STEP, height // STEP * STEP)
    sizes = bucket_sizes(*resolution)
    if not sizes:
        raise UserError(f"resolution is {resolution[0]}x{resolution[1]}; buckets have sides of {STEP} and more.")
    return min(sizes, key=lambda size: abs(size[0] / size[1] - width / height))


def to_bucket(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale a picture (height, width, c) to cover a size and cut its center: (size[1], size[0], c).

    Enlarged by Lanczos, reduced by the mean over areas, as musubi-tuner does with Pillow and OpenCV.
    """
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    scale = max(size[0] / width, size[1] / height)
    wide, high = int(width * scale + 0.5), int(height * scale + 0.5)
    if scale > 1:
        scaled = np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.LANCZOS))
    else:
        rows, columns = _area_weights(height, high), _area_weights(width, wide)
        mean = np.einsum("ih,hwc->iwc", rows, picture, optimize=True)
        mean = np.einsum("jw,iwc->ijc", columns, mean, optimize=True)
        scaled = np.rint(mean).astype(np.uint8)
    left, top = (wide - size[0]) // 2, (high - size[1]) // 2
    return np.ascontiguousarray(scaled[top : top + size[1], left : left + size[0]])


def _area_weights(length: int, reduced: int) -> NDArray[np.float32]:
    """Return (reduced, length): the share of each pixel in the mean over the area of a reduced pixel."""
    edges = np.arange(reduced + 1) * (length / reduced)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
