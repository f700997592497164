"""Clips to read: what they are, and their pictures in chunks."""

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Protocol

import numpy as np

from wan_vae.video.audio import AudioSource
from wan_vae.video.color import Color
from wan_vae.video.orientation import Picture

Clipped = Picture
"""(frames, height, width, 3) RGB of full range, 0..255 for uint8 and 0..65535 for uint16."""


@dataclass(frozen=True)
class ClipInfo:
    """What a clip is, after the options it was opened with.

    Attributes:
        width: Of the pictures as they are given out: turned upright, and resized if that was asked for.
        height: Likewise.
        fps: Pictures a second, exact; the average where the rate is variable.
        frames: Number of pictures; None where it is known only once all are read.
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
    frames: int | None
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


class Notices:
    """Warns the user, of each thing once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def give(self, notice: str) -> None:
        """Log `notice` as a warning unless that was done before."""
        if notice not in self._given:
            self._given.add(notice)
            logging.getLogger("wan_vae").warning(notice)


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

    def chunks(self, count: int) -> Iterator[Clipped]:
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
