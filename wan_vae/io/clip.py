"""An opened clip: its properties, and its frames in chunks.

`ClipSource` and `ClipSink` are what readers and writers of one kind of file implement.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wan_vae.errors import ClipError
from wan_vae.io.audio import AudioSource
from wan_vae.io.color import Color, Resizer, is_transparent, over_black, to_depth, with_alpha
from wan_vae.io.fit import Fit, Size, scaling
from wan_vae.io.orientation import Picture
from wan_vae.io.timing import FASTEST, SLOWEST, Timing, resample, resampled_count

LOGGER = logging.getLogger("wan_vae")

LARGEST_SIDE = 16384  # pixels; twice the width of 8K, about
MOST_PIXELS = 256_000_000  # of a picture

_LARGEST_FRAME = 1 << 26  # of a frame; twice the pixels of 8K

LARGEST_ASPECT = 2**16
"""Pixels are at most so many times wider than high, or higher than wide, in a clip or a latents file."""


@dataclass(frozen=True)
class ClipInfo:
    """Properties of a clip, after the options it was opened with.

    Attributes:
        width, height: Size of the frames in pixels, after rotation and resizing.
        fps: Exact frame rate; the average if the rate is variable.
        frames: Number of frames, counted when the clip was opened; decoding yields as many, or fails.
        color: Relation of RGB to the stored samples.
        pixel_aspect: Width of a pixel over its height, 1 for square pixels. Stretching to a size preserves the display
            aspect, cropping and padding make pixels square.
        bit_depth: Bits of a channel in the source. Above 8, frames are uint16.
        codec: FFmpeg's or Pillow's name of the picture format.
        container: FFmpeg's name of the file format; "image" or "folder" for images.
        has_alpha: The first frame has transparent pixels; for a large image, an alpha channel.
        has_audio: There is an audio stream.
        rotation: Clockwise rotation applied to the stored frames, in degrees: 0, 90, 180 or 270.
        variable_frame_rate: The frames of the source are unevenly spaced in time.
    """

    width: int
    height: int
    fps: Fraction
    frames: int
    color: Color
    pixel_aspect: Fraction
    bit_depth: int
    codec: str
    container: str
    has_alpha: bool
    has_audio: bool
    rotation: int
    variable_frame_rate: bool


class ClipSource(Protocol):
    """A reader of one kind of source; its attributes are those of the frames that are needed for the selection."""

    name: str  # in messages
    timing: Timing
    info: ClipInfo  # before resizing and resampling
    audio: AudioSource | None
    left_out: tuple[str, ...]  # what the file holds in addition to the pictures and the first track of audio
    alpha_is_unset: bool  # alpha is 0 in all of the first frame, as from programs that do not set it, and not given
    scaled: tuple[int, int] | None  # width and height that pictures are to be scaled to; they may come in others

    def timed_pictures(self) -> Generator[tuple[Fraction, Picture], None, None]:
        """Yield seconds since the start of the selection, and the frame, upright (height, width, 3 or 4)."""


class ClipSink(ABC):
    """A writer of one kind of output, which is finished or aborted once."""

    @abstractmethod
    def write(self, picture: Picture) -> None:
        """Append a (height, width, 3 or 4) uint8 picture."""

    def finish(self) -> None:  # noqa: B027
        """Complete and close the output."""

    def abort(self) -> None:  # noqa: B027
        """Close the output without completing it."""


class Clip:
    """A clip opened by `open_clip`. A context manager that closes the file.

    Attributes:
        info: Properties of the clip.
        audio: Audio of the selected frames, for `create_clip`. None if there is none, or if the clip was opened from a
            file object, which cannot be read at two places at once.
        left_out: What the file holds in addition to its pictures and its first track of audio: "subtitles" and so on.
        alpha: Whether `chunks` gives alpha; it may be set before.
    """

    def __init__(
        self, source: ClipSource, size: Size | None, fit: Fit | None, fps: Fraction | None, alpha: bool
    ) -> None:
        """Use `open_clip` instead."""
        info = source.info
        self._duration = source.timing.end - source.timing.start
        if fps is not None:
            info = replace(info, fps=fps, frames=resampled_count(self._duration, fps))
        elif info.variable_frame_rate:
            LOGGER.warning(
                f"{source.name} has a variable frame rate; its frames are kept one for one at the average rate, "
                f"{float(info.fps):.3f} a second, unless a rate is given to resample them to."
            )
        how = self._scaling = scaling(info.width, info.height, info.pixel_aspect, size, fit)
        (width, height), before = how.size, info
        info = replace(info, width=width, height=height, pixel_aspect=how.pixel_aspect)
        if max(width, height) > LARGEST_SIDE:
            raise ClipError(
                f"{source.name} would get {width}x{height} pixels; sides of up to {LARGEST_SIDE} are possible, so give"
                " both sides as --size (in Python, size)."
            )
        if fit is None and how.distorts_from(before.pixel_aspect):
            LOGGER.warning(
                f"{source.name} is stretched from {before.width}x{before.height} to {width}x{height}, with pixels"
                f" {float(how.pixel_aspect):.2f} times as wide as high; --fit crop or --fit pad (in Python, fit) keeps"
                " them square, and --fit stretch is for those who want this."
            )
        if not SLOWEST <= info.fps <= FASTEST:
            raise ClipError(
                f"{source.name} has {float(info.fps):g} frames a second, but only rates from {SLOWEST} to {FASTEST} can"
                " be kept; give another with --fps (in Python, fps)."
            )
        if not Fraction(1, LARGEST_ASPECT) <= info.pixel_aspect <= LARGEST_ASPECT:
            raise ClipError(
                f"{source.name} has pixels {float(info.pixel_aspect):g} times as wide as high; at most"
                f" {LARGEST_ASPECT} times, or as many times higher, can be kept; give another --size (in Python, size),"
                " or set its pixels square with `ffmpeg -vf setsar=1`."
            )
        if how.scaled != (before.width, before.height):
            source.scaled = how.scaled
        self.info = info
        self.audio = source.audio
        self.left_out = source.left_out
        self._source = source
        self._fps = fps
        self.alpha = alpha
        self._resize = Resizer(*how.scaled)
        self._dtype = np.dtype(np.uint8 if info.bit_depth <= 8 else np.uint16)
        self._warned_of_alpha = False
        self._reading: Generator[Picture, None, None] | None = None

    def __enter__(self) -> "Clip":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; `chunks` opens it again."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def chunks(self, count: int) -> Iterator[NDArray[Any]]:
        """Read from the first frame, `count` frames at a time. Memory does not grow with the length of the clip.

        Yields:
            New arrays (n, height, width, 3), full-range RGB, or (n, height, width, 4) with straight alpha if the clip
            was opened for it: uint8, or uint16 (0 to 65535) for sources of more than 8 bits a channel. n is `count`,
            except that the last chunk may be shorter.

        Raises:
            ClipError: The file is cut short or damaged, or its frames are too large.
            ValueError: `count` is no integer above 0.
        """
        if not hasattr(count, "__index__") or count < 1:
            raise ValueError(f"{count} frames at a time cannot be read; ask for an integer, at least 1.")
        if self.info.width * self.info.height > _LARGEST_FRAME:
            raise ClipError(
                f"{self._source.name} is {self.info.width}x{self.info.height}, which is too large to process: frames "
                f"have up to {_LARGEST_FRAME // 1_000_000} million pixels; give a smaller size (--size)."
            )
        if self.alpha and self._source.alpha_is_unset:
            LOGGER.warning(
                f"{self._source.name} has an alpha of 0 in all of its first frame, as from programs that leave it"
                " unset; it is read as opaque."
            )
        self.close()
        self._reading = self._pictures()
        shape = (self.info.height, self.info.width, 4 if self.alpha else 3)
        chunk = np.empty((min(count, self.info.frames), *shape), self._dtype)
        filled = 0
        for picture in self._reading:
            chunk[filled] = picture
            filled += 1
            if filled == len(chunk):
                yield chunk
                chunk, filled = np.empty_like(chunk), 0
        if filled:
            yield chunk[:filled]

    def _pictures(self) -> Generator[Picture, None, None]:
        with closing(self._source.timed_pictures()) as timed:
            finished = ((time, self._scaling.place(self._postprocess(picture))) for time, picture in timed)
            yield from resample(finished, self._duration, self._fps)

    def _postprocess(self, picture: Picture) -> Picture:
        """Convert upright (h, w, 3 or 4) of any size and dtype to one size, and the chunks' channels and dtype."""
        picture = to_depth(picture, self._dtype)
        if not is_transparent(picture):
            picture = self._resize(picture[..., :3])
            return with_alpha(picture) if self.alpha else picture
        if self.alpha:
            return self._resize(picture)
        if not self._warned_of_alpha:
            LOGGER.warning(f"{self._source.name} has transparent pixels; they are laid over black.")
        self._warned_of_alpha = True
        return self._resize(over_black(picture))
