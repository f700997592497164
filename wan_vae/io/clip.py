"""Clips to read: what they are, and their pictures in chunks.

The last steps of reading, the same for every source: laying transparency over black and resizing.
"""

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from wan_vae.io.audio import AudioSource
from wan_vae.io.color import Color, Resizer, is_transparent, over_black
from wan_vae.io.orientation import Picture
from wan_vae.io.timing import resampled_count


@dataclass(frozen=True)
class ClipInfo:
    """What a clip is, after the options it was opened with.

    Attributes:
        width: Of the pictures as they are given out: turned upright, and resized if that was asked for.
        height: Likewise.
        fps: Pictures a second, exact; the average where the rate is variable.
        frames: Number of pictures, counted in the file without decoding it. Interlaced video that stores the two
            fields of a picture apart has fewer; in all else, fewer is an error while reading.
        color: How RGB and what is stored relate.
        pixel_aspect: Width of a pixel over its height, 1 for square; a new size keeps the shape of the whole.
        bit_depth: Bits of a channel in the source; above 8, pictures come as uint16.
        codec: FFmpeg's or Pillow's name of the picture format.
        container: Likewise, of the file's; "folder" for a folder of pictures.
        has_alpha: Whether the first picture is transparent anywhere.
        has_audio: Whether there is sound.
        rotation: Degrees the stored pictures are turned clockwise by to stand upright: 0, 90, 180 or 270.
        variable_frame_rate: Whether the source's pictures come at uneven times.
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


@dataclass(frozen=True)
class Selection:
    """What is wanted of a source.

    Attributes:
        size: Width and height, None to leave them.
        frames: Pictures by index, as in a slice.
        fps: Pictures a second, None to leave them.
    """

    size: tuple[int, int] | None
    frames: tuple[int | None, int | None]
    fps: Fraction | None


def selected_info(source: ClipInfo, selection: Selection, duration: Fraction) -> ClipInfo:
    """The description of a source whose frames are selected already, as it is once resized and resampled.

    Args:
        source: The description, with the number of selected frames.
        selection: What is wanted.
        duration: For how long the selected frames are shown, in seconds.
    """
    info = source
    if selection.fps is not None:
        info = replace(info, fps=selection.fps, frames=resampled_count(duration, selection.fps))
    if selection.size is not None:
        width, height = selection.size
        aspect = info.pixel_aspect * Fraction(info.width * height, info.height * width)
        info = replace(info, width=width, height=height, pixel_aspect=aspect.limit_denominator(1000))
    return info


class Notices:
    """Warns the user, of each thing once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def give(self, notice: str) -> None:
        """Log `notice` as a warning unless that was done before."""
        if notice not in self._given:
            self._given.add(notice)
            logging.getLogger("wan_vae").warning(notice)


def notice_variable_rate(path: Path, info: ClipInfo, selection: Selection, notices: Notices) -> None:
    """Tell what becomes of a variable frame rate, if there is one."""
    if info.variable_frame_rate and selection.fps is None:
        notices.give(
            f"{path} has a variable frame rate; its frames are kept one for one at the average rate, "
            f"{float(info.fps):.3f} a second, unless a rate is given to resample them to."
        )


class Source(Protocol):
    """Something that has pictures in a row."""

    info: ClipInfo
    audio: AudioSource | None

    def pictures(self) -> Generator[Picture, None, None]:
        """The wanted pictures from the first on: upright, resized, resampled, (height, width, 3)."""


class Clip:
    """A clip opened for reading. A context manager: leaving it closes the file.

    Attributes:
        info: What the clip is.
        audio: Its sound for as long as the selected pictures last, to hand to `create_clip`; None if it has none.
    """

    def __init__(self, source: Source) -> None:
        self.info = source.info
        self.audio = source.audio
        self._source = source
        self._reading: Generator[Picture, None, None] | None = None

    def __enter__(self) -> "Clip":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; `chunks` opens it again."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def chunks(self, count: int) -> Iterator[Picture]:
        """Read from the first picture on, `count` pictures at a time, in memory that does not grow with the clip.

        Yields:
            New arrays (n, height, width, 3), RGB of full range: uint8, or uint16 (0..65535) for sources of more than
            8 bits a channel. n is `count` for all but the last, which has 1 to `count`.

        Raises:
            ClipError: The file turns out to be cut short or damaged.
            ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"{count} frames at a time cannot be read; ask for at least 1.")
        self.close()
        self._reading = self._source.pictures()
        dtype = np.uint8 if self.info.bit_depth <= 8 else np.uint16
        chunk = np.empty((count, self.info.height, self.info.width, 3), dtype)
        filled = 0
        for picture in self._reading:
            chunk[filled] = picture
            filled += 1
            if filled == count:
                yield chunk
                chunk, filled = np.empty_like(chunk), 0
        if filled:
            yield chunk[:filled]


class Finisher:
    """Makes upright RGB or RGBA pictures of any size into RGB ones of a clip's size."""

    def __init__(self, path: Path, info: ClipInfo, notices: Notices) -> None:
        self._path = path
        self._notices = notices
        self._resize = Resizer(info.width, info.height)

    def __call__(self, picture: Picture) -> Picture:
        """(height, width, 3 or 4) to (info.height, info.width, 3), of the same dtype."""
        if is_transparent(picture):
            self._notices.give(f"{self._path} has transparent pixels; they are laid over black.")
            picture = over_black(picture)
        return self._resize(picture[..., :3])
