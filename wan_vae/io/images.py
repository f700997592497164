"""Writing pictures: a folder of them, or a single one.

Reading pictures: a folder of them, a single one, or an animated WebP or PNG.
"""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import av.error
import imageio.v3 as iio
import numpy as np
from imageio.core.request import InitializationError
from PIL import Image

from wan_vae.errors import ClipError
from wan_vae.io.audio import AudioSource, file_url, reason
from wan_vae.io.clip import ClipInfo, Finisher, Notices, Selection, notice_variable_rate, selected_info
from wan_vae.io.color import RGB, UNSPECIFIED, RgbConverter, bit_depth, is_transparent
from wan_vae.io.ffmpeg_reader import check_whole
from wan_vae.io.orientation import Orientation, Picture, from_exif, from_frame
from wan_vae.io.timing import measure, resample

if TYPE_CHECKING:
    from imageio.plugins.pillow import PillowPlugin

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})

# Other formats hold several pictures too, but those are pages, or a photograph's preview; the first one counts.
_ANIMATED_SUFFIXES = (".webp", ".png")

_DEFAULT_RATE = Fraction(24)

# What browsers do with pictures that are to be shown for no time at all.
_SHORTEST = Fraction(1, 10)


@dataclass(frozen=True)
class _Header:
    """What an image file says of itself before its pixels are decoded; width and height are of the upright picture."""

    width: int
    height: int
    bit_depth: int
    pictures: int
    orientation: Orientation


class ImageSource:
    """An image file or a folder of them, as a `Source`."""

    audio: AudioSource | None = None

    def __init__(self, path: Path, selection: Selection, notices: Notices) -> None:
        """Look at every file's header, decode the first picture, and time an animation.

        Raises:
            ClipError: There is no image, one cannot be read, their sizes differ, or no picture is selected.
        """
        self._path = path
        self._notices = notices
        self._files = _images_in(path, notices) if path.is_dir() else [path]
        header = _common_header(self._files)
        self._animated = not path.is_dir() and path.suffix.lower() in _ANIMATED_SUFFIXES and header.pictures > 1
        if not self._animated:
            rate = selection.fps or _DEFAULT_RATE
            if path.is_dir() and selection.fps is None:
                notices.give(f"{path} is a folder of pictures, which have no rate: {rate} a second is assumed.")
            selection = replace(selection, fps=None)
            shown = ((number / rate, 1 / rate) for number in range(len(self._files)))
            self._timing = measure(shown, tick=Fraction(0), rates=[rate], frames=selection.frames)
        else:
            self._timing = measure(self._shown(), tick=Fraction(1, 1000), rates=[], frames=selection.frames)
        self._selection = selection
        self._deep = header.bit_depth > 8
        first, _ = next(_pictures(self._files[0]))
        self.info = selected_info(
            ClipInfo(
                width=header.width,
                height=header.height,
                fps=self._timing.rate,
                frames=self._timing.count,
                color=RGB,
                pixel_aspect=Fraction(1),
                bit_depth=header.bit_depth,
                codec=self._files[0].suffix.lower().removeprefix("."),
                container="folder" if path.is_dir() else "image",
                has_alpha=is_transparent(first),
                has_audio=False,
                rotation=header.orientation.degrees,
                variable_frame_rate=not self._timing.constant,
            ),
            selection,
            self._timing.end - self._timing.start,
        )
        notice_variable_rate(path, self.info, selection, notices)

    def pictures(self) -> Generator[Picture, None, None]:
        """The wanted pictures, as `Source` says."""
        yield from resample(self._timed_pictures(), self._timing.end - self._timing.start, self._selection.fps)

    def _timed_pictures(self) -> Iterator[tuple[Fraction, Picture]]:
        """The selected pictures, finished, each with its seconds after the first."""
        finish = Finisher(self._path, self.info, self._notices)
        first, stop = self._selection.frames
        time = Fraction(0)
        selected: Iterator[tuple[Picture, Fraction]]
        if self._animated:
            selected = islice(_pictures(self._path), first, stop)
        else:
            selected = chain.from_iterable(islice(_pictures(file), 1) for file in self._files[first:stop])
        for picture, duration in selected:
            if self._deep and picture.dtype == np.uint8:
                picture = picture.astype(np.uint16) * 257
            yield time, finish(picture)
            time += duration

    def _shown(self) -> Iterator[tuple[Fraction, Fraction]]:
        time = Fraction(0)
        for _, duration in _pictures(self._path):
            yield time, duration
            time += duration


def _images_in(folder: Path, notices: Notices) -> list[Path]:
    """The images of a folder, picture2 before picture10."""
    images: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.iterdir(), key=_natural_order):
        (images if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() else others).append(path)
    if not images:
        raise ClipError(
            f"{folder} is a folder with no images in it; images end in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    if others:
        names = ", ".join(path.name for path in others[:5]) + (f" and {len(others) - 5} more" if others[5:] else "")
        notices.give(f"{folder} holds what is no image and is left out: {names}.")
    return images


def _natural_order(path: Path) -> list[str | int]:
    # Splitting by a group gives text and digits in turn, so that like is compared with like.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _common_header(files: list[Path]) -> _Header:
    """The header of the first of `files`, with the largest bit depth of all."""
    headers = [_header(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        if (header.width, header.height) != (headers[0].width, headers[0].height):
            raise ClipError(
                f"{file} is {header.width}x{header.height} but {files[0].name} in the same folder is "
                f"{headers[0].width}x{headers[0].height}; bring all to one size."
            )
    return replace(headers[0], bit_depth=max(header.bit_depth for header in headers))


def _header(path: Path) -> _Header:
    check_whole(path)
    if (frame := _deep_frame(path)) is not None:
        orientation, size, depth, pictures = from_frame(frame), (frame.width, frame.height), bit_depth(frame.format), 1
    else:
        with _opened(path) as file:
            described = file.metadata(index=0, exclude_applied=False)
            orientation, size, depth = from_exif(described.get("Orientation", 1)), described["shape"], 8
            pictures = _count(file)
    width, height = reversed(size) if orientation.swap else size
    return _Header(width, height, depth, pictures, orientation)


def _pictures(path: Path) -> Iterator[tuple[Picture, Fraction]]:
    """Every picture of a file as upright RGB or RGBA, with the seconds it is shown for, 0 where it has no time."""
    if (frame := _deep_frame(path)) is not None:
        yield from_frame(frame).apply(RgbConverter(frame, UNSPECIFIED, UNSPECIFIED)(frame)), Fraction(0)
        return
    with _opened(path) as file:
        for index in range(_count(file)):
            picture = file.read(index=index, mode="RGBA", writeable_output=False)
            described = file.metadata(index=index, exclude_applied=False)
            milliseconds = Fraction(described.get("duration", 0)).limit_denominator(1000)
            # imageio's own turning of pictures leaves grey ones as they lie.
            yield from_exif(described.get("Orientation", 1)).apply(picture), milliseconds / 1000 or _SHORTEST


@contextmanager
def _opened(path: Path) -> "Iterator[PillowPlugin]":
    try:
        with iio.imopen(path, "r", plugin="pillow") as file:
            yield cast("PillowPlugin", file)
    except (OSError, ValueError, SyntaxError, InitializationError, Image.DecompressionBombError) as error:
        raise ClipError(f"{path} cannot be read as an image ({reason(error)}); fetch or copy it again.") from error


def _count(file: "PillowPlugin") -> int:
    return file.properties(index=cast(int, ...)).n_images or 1


def _deep_frame(path: Path) -> av.VideoFrame | None:
    """The picture of an image file with more than 8 bits a channel, None for any other file.

    Pillow, and with it imageio, cuts these down to 8 bits or does not open them.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        with path.open("rb") as file:
            header = file.read(25)
        if not header.startswith(b"\x89PNG") or header[24:] != b"\x10":
            return None
    elif suffix not in (".tif", ".tiff"):
        return None
    try:
        with av.open(file_url(path), format="png_pipe" if suffix == ".png" else "tiff_pipe") as container:
            frame = next(container.decode(video=0))
    except (av.error.FFmpegError, OSError):
        # What FFmpeg cannot read, Pillow may; and what neither can is for Pillow to report.
        return None
    return frame if bit_depth(frame.format) > 8 else None


PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

_JPEG = {"quality": 95, "subsampling": 0}


def write_picture(path: Path, picture: Picture) -> None:
    """Write a (height, width, 3) uint8 picture in the format its name's ending stands for."""
    options: dict[str, Any] = _JPEG if path.suffix.lower() in (".jpg", ".jpeg") else {}
    iio.imwrite(path, picture, plugin="pillow", **options)


class FolderSink:
    """A folder of PNG files being written, 000000.png and on, as a `Sink`."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._path = path
        self._count = 0

    def write(self, picture: Picture) -> None:
        """Write the next file, of a (height, width, 3) uint8 picture."""
        write_picture(self._path / f"{self._count:06}.png", picture)
        self._count += 1

    def finish(self) -> None:
        """Nothing is left to do: every file is whole once written."""

    def abort(self) -> None:
        """Nothing is open."""


class PictureSink:
    """A single image file being written, as a `Sink`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._picture: Picture | None = None

    def write(self, picture: Picture) -> None:
        """Take the picture, (height, width, 3) uint8.

        Raises:
            ClipError: It is the second.
        """
        if self._picture is not None:
            raise ClipError(
                f"an image file ({self._path.suffix}) holds one picture, not several; name a folder, that is, a path "
                "without an ending."
            )
        self._picture = picture.copy()

    def finish(self) -> None:
        """Write the file."""
        if self._picture is not None:
            write_picture(self._path, self._picture)

    def abort(self) -> None:
        """Nothing is open."""
