"""Which frames of a clip, and at which size, become one item of a data set.

The rules of buckets and of extraction are those of musubi-tuner (dataset/bucket.py, image_video_dataset.py), whose
training looks for exactly these sizes and lengths; other trainers read the sizes from the tensors.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wan_vae.arguments import check_count, check_type
from wan_vae.errors import ClipError, UserError

Extraction: TypeAlias = Literal["head", "chunk", "slide", "uniform", "full"]
STEP = 16  # pixels between two sizes of buckets
MUSUBI_FPS = 16  # of Wan's clips
_MOST_PIXELS = 2**26  # of a picture before it is cut


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
            check_count(name, getattr(self, name))
        check_type("target_frames", self.target_frames, (tuple, list), "the lengths of parts, such as (17,)")
        for target in self.target_frames:
            check_count("A length of target_frames", target)
        object.__setattr__(self, "target_frames", tuple(self.target_frames))
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


def musubi_frames(frames: int, source_fps: float) -> list[int]:
    """Return the numbers of the frames that musubi-tuner keeps of a clip whose rate is said to be `source_fps`.

    Of the frames that have the same number at 16 a second, rounded down, the first is kept, so that none is repeated
    in a clip of a lower rate. Times are summed in float64 as in its `load_video`; exact ones would keep other frames.
    """
    step, number, last, kept = MUSUBI_FPS / source_fps, 0.0, -1, []
    for frame in range(frames):
        if int(number) != last:
            kept.append(frame)
            last = int(number)
        number += step
    return kept


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

    Enlarged by Lanczos, reduced by the mean over areas, with the same bytes as musubi-tuner has of Pillow and OpenCV.

    Raises:
        ClipError: It is so wide or high that there would be too much to cut.
    """
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    scale = max(size[0] / width, size[1] / height)
    wide, high = int(width * scale + 0.5), int(height * scale + 0.5)
    if wide * high > _MOST_PIXELS:
        raise ClipError(f"{width}x{height} is too far from the shape of {size[0]}x{size[1]} to be cut to it.")
    if scale > 1:
        scaled = np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.LANCZOS))
    else:
        scaled = _reduced(picture, wide, high)
    left, top = (wide - size[0]) // 2, (high - size[1]) // 2
    return np.ascontiguousarray(scaled[top : top + size[1], left : left + size[0]])


def _reduced(picture: NDArray[np.uint8], wide: int, high: int) -> NDArray[np.uint8]:
    """Return the means over the areas of a smaller picture's pixels, (high, wide, c), rounded as OpenCV's INTER_AREA.

    Sums are in float32 and in its order, as they decide where a mean lies between two bytes.
    """
    height, width, channels = picture.shape
    if width % wide == height % high == 0:
        down, across = height // high, width // wide
        sums = np.zeros((high, wide, channels), np.int32)
        for row, column in product(range(down), range(across)):
            sums += picture[row::down, column::across]
        if (down, across) == (2, 2):
            return (sums + 2 >> 2).astype(np.uint8)
        return np.rint(sums.astype(np.float32) * np.float32(1 / (down * across))).astype(np.uint8)
    mean = np.zeros((height, wide, channels), np.float32)
    for pixels, shares in _area_taps(width, wide):
        mean += picture.take(pixels, axis=1) * shares[:, None]
    rows = mean
    mean = np.zeros((high, wide, channels), np.float32)
    for pixels, shares in _area_taps(height, high):
        mean += rows.take(pixels, axis=0) * shares[:, None, None]
    return np.rint(mean).astype(np.uint8)


def _area_taps(length: int, reduced: int) -> list[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Return the pixels under each of `reduced` larger ones from left to right: numbers and shares, (reduced,) each."""
    step = 1 / (reduced / length)
    left = np.arange(reduced) * step
    right, covered = left + step, np.minimum(step, length - left)
    last = np.minimum(np.floor(right), length - 1)
    first = np.minimum(np.ceil(left), last)
    least = 1e-3  # of a pixel, below which OpenCV passes over it
    taps = []
    for number in range(-1, int((last - first).max()) + 1):
        pixel = first + number
        share = np.where(pixel < last, 1.0, np.minimum(right - last, 1.0))
        share = np.where(pixel < first, first - left, share)
        share = np.where((pixel > last) | (share <= least), 0.0, np.minimum(share, covered))
        taps.append((np.clip(pixel, 0, length - 1).astype(np.intp), (share / covered).astype(np.float32)))
    return taps
