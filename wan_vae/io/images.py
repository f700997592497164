"""Images: reading a single one, an animated WebP or PNG or a folder of images; writing one or a folder.

Pillow reads them, except images of more than 8 bits a channel, which FFmpeg reads; imageio writes them.
"""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import imageio.v3 as iio
import numpy as np
from PIL import ExifTags, Image

from wan_vae.errors import ClipError
from wan_vae.io.audio import AudioSource, file_url, reason
from wan_vae.io.clip import LOGGER, ClipInfo, ClipSink
from wan_vae.io.color import RGB, UNSPECIFIED, RgbConverter, bit_depth, is_transparent
from wan_vae.io.containers import check_complete
from wan_vae.io.orientation import Orientation, Picture, from_exif, from_frame
from wan_vae.io.timing import measure

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""Read through Pillow; other files are read through FFmpeg."""

STILL_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Written as a single image; .webp is written as an animation."""

JPEG_SUFFIXES = (".jpg", ".jpeg")


class _Header(NamedTuple):
    """Properties of an image file read without decoding."""

    size: tuple[int, int]  # width and height of the upright picture
    bit_depth: int
    pictures: int
    orientation: Orientation


class ImageSource:
    """Reader of an image file or a folder of images; a `ClipSource`."""

    audio: AudioSource | None = None
    left_out: tuple[str, ...] = ()

    def __init__(self, path: Path, frames: tuple[int | None, int | None], fps: Fraction | None) -> None:
        """Read the headers of all files and the durations of an animation, and decode the first picture.

        `frames` are the first picture and the one after the last; `fps` is the rate of images that are no animation. A
        ClipError if there is no image, one cannot be read, their sizes differ, or no picture is selected.
        """
        self.name = str(path)
        self._path = path
        self._frames = frames
        is_folder = path.is_dir()
        self._files = _images_in(path) if is_folder else [path]
        headers = [_header(file) for file in self._files]
        (width, height), _, pictures, orientation = headers[0]
        for file, header in zip(self._files, headers, strict=True):
            if header.size != (width, height):
                raise ClipError(
                    f"{file} is {header.size[0]}x{header.size[1]} but {self._files[0].name} in the same folder is "
                    f"{width}x{height}; bring all to one size."
                )
        bits = max(header.bit_depth for header in headers)
        # Several pictures in other formats are pages, or a preview; only the first is read.
        self._animated = not is_folder and path.suffix.lower() in (".webp", ".png") and pictures > 1
        if self._animated:
            self.timing = measure(self._timestamps(), tick=Fraction(1, 1000), rates=[], frames=frames)
        else:
            rate = fps or Fraction(24)
            if is_folder and fps is None:
                LOGGER.warning(f"{path} is a folder of pictures, which have no rate: {rate} a second is assumed.")
            timestamps = ((number / rate, 1 / rate) for number in range(len(self._files)))
            self.timing = measure(timestamps, tick=Fraction(0), rates=[rate], frames=frames)
        self._deep = bits > 8
        first, _ = next(_pictures(self._files[0]))
        self.info = ClipInfo(
            width=width,
            height=height,
            fps=self.timing.rate,
            frames=self.timing.count,
            color=RGB,
            pixel_aspect=Fraction(1),
            bit_depth=bits,
            codec=self._files[0].suffix.lower().removeprefix("."),
            container="folder" if is_folder else "image",
            has_alpha=is_transparent(first),
            has_audio=False,
            rotation=orientation.degrees,
            variable_frame_rate=not self.timing.constant,
        )

    def timed_pictures(self) -> Generator[tuple[Fraction, Picture], None, None]:
        """Decode the selected pictures; see `ClipSource`."""
        time = Fraction(0)
        selected: Iterator[tuple[Picture, Fraction]]
        if self._animated:
            selected = islice(_pictures(self._path), *self._frames)
        else:
            selected = chain.from_iterable(islice(_pictures(file), 1) for file in self._files[slice(*self._frames)])
        for picture, duration in selected:
            if self._deep and picture.dtype == np.uint8:
                picture = picture.astype(np.uint16) * 257
            yield time, picture
            time += duration

    def _timestamps(self) -> Iterator[tuple[Fraction, Fraction]]:
        time = Fraction(0)
        for _, duration in _pictures(self._path):
            yield time, duration
            time += duration


def _images_in(folder: Path) -> list[Path]:
    """Images of a folder in natural order: 2.png before 10.png."""

    def natural_order(path: Path) -> list[str | int]:
        # Splitting at a group alternates text and digits, so only values of one type are compared.
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]

    images: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.iterdir(), key=natural_order):
        (images if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() else others).append(path)
    if not images:
        raise ClipError(
            f"{folder} is a folder with no images in it; images end in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    if others:
        names = ", ".join(path.name for path in others[:5]) + (f" and {len(others) - 5} more" if others[5:] else "")
        LOGGER.warning(f"{folder} holds what is no image and is left out: {names}.")
    return images


def _header(path: Path) -> _Header:
    check_complete(path, str(path))
    if (frame := _deep_frame(path)) is not None:
        header = _Header((frame.width, frame.height), bit_depth(frame.format), 1, from_frame(frame))
    else:
        with _opened(path) as image:
            header = _Header(image.size, 8, _count(image), _orientation(image))
    return header._replace(size=header.size[::-1]) if header.orientation.swap else header


def _pictures(path: Path) -> Iterator[tuple[Picture, Fraction]]:
    """Yield the pictures of a file as upright RGB or RGBA, with their durations in seconds."""
    if (frame := _deep_frame(path)) is not None:
        yield from_frame(frame).apply(RgbConverter(frame, UNSPECIFIED, UNSPECIFIED)(frame)), Fraction(0)
        return
    with _opened(path) as image:
        for index in range(_count(image)):
            image.seek(index)
            picture = np.asarray(image.convert("RGBA"))
            milliseconds = Fraction(image.info.get("duration", 0)).limit_denominator(1000)  # of WebP, once decoded
            # Browsers display frames of duration 0 for 1/10 s.
            yield _orientation(image).apply(picture), milliseconds / 1000 or Fraction(1, 10)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ClipError(f"{path} cannot be read as an image ({reason(error)}); fetch or copy it again.") from error


def _orientation(image: Image.Image) -> Orientation:
    return from_exif(image.getexif().get(ExifTags.Base.Orientation, 1))


def _count(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1))


def _deep_frame(path: Path) -> av.VideoFrame | None:
    """Decode an image of more than 8 bits a channel, which Pillow reduces to 8 bits or cannot open.

    None for any other file.
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
        # Pillow may read it; if not, it reports the error.
        return None
    return frame if bit_depth(frame.format) > 8 else None


def write_picture(path: Path, picture: Picture) -> None:
    """Write a (height, width, 3) uint8 picture; the suffix of `path` selects the format."""
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix.lower() in JPEG_SUFFIXES else {}
    iio.imwrite(path, picture, plugin="pillow", **options)


class FolderSink(ClipSink):
    """Writer of a folder of PNG files 000000.png, 000001.png and so on."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._path = path
        self._count = 0

    def write(self, picture: Picture) -> None:
        """Write a (height, width, 3) uint8 picture to the next file."""
        write_picture(self._path / f"{self._count:06}.png", picture)
        self._count += 1


class PictureSink(ClipSink):
    """Writer of a single image file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._picture: Picture | None = None

    def write(self, picture: Picture) -> None:
        """Keep a (height, width, 3) uint8 picture; a ClipError for the second one."""
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
