"""Images as clips: a still, an animation, the pages of a TIFF, or a folder of images."""

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from wan_vae.errors import ClipError, reason
from wan_vae.io.audio import AudioSource
from wan_vae.io.clip import LOGGER, ClipInfo
from wan_vae.io.color import RGB, is_transparent
from wan_vae.io.file_names import IMAGE_SUFFIXES
from wan_vae.io.image_file import ImageHeader, read_header, read_pictures
from wan_vae.io.image_kind import image_kind
from wan_vae.io.orientation import Picture
from wan_vae.io.timing import measure

_MOST_PIXELS_LOOKED_AT = 1 << 24  # of a picture that is decoded to see whether it is transparent


@dataclass
class _ImageFile:
    source: Path | bytes
    name: str
    kind: str
    header: ImageHeader
    _warned: bool = False

    def pictures(self, selected: slice) -> Iterator[Picture]:
        for picture in read_pictures(self.source, self.name, self.kind, self.header, selected):
            if self.header.bit_depth > 8 and picture.dtype == np.uint8 and not self._warned:
                LOGGER.warning(f"{self.name} has {self.header.bit_depth} bits a channel, of which 8 can be read.")
                self._warned = True
            yield picture


class ImageSource:
    """Reader of an image file or a folder of images; a `ClipSource`."""

    audio: AudioSource | None = None
    left_out: tuple[str, ...] = ()
    alpha_is_unset = False
    scaled: tuple[int, int] | None = None  # images are scaled after they were read

    def __init__(
        self,
        source: Path | bytes,
        name: str,
        kind: str | None,
        frames: tuple[int | None, int | None],
        fps: Fraction | None,
    ) -> None:
        """Read the headers of all files, and decode the first picture if it is not large.

        `kind` is that of the file, None for a folder; `frames` are the first picture and the one after the last,
        counted after resampling to `fps`, which is the rate of images that are no animation. A ClipError if there is no
        image, one cannot be read, their sizes differ, or no picture is selected.
        """
        self.name = name
        if kind is None and isinstance(source, Path):
            self._files = [_file_of_folder(path) for path in _images_in(source)]
        else:
            self._files = [_ImageFile(source, name, str(kind), read_header(source, name, str(kind)))]
        header = self._files[0].header
        if header.profile is not None:
            LOGGER.warning(
                f"{self._files[0].name} has the color profile {header.profile!r}, which is not applied: colors are"
                " taken as sRGB."
            )
        for file in self._files:
            if (file.header.width, file.header.height) != (header.width, header.height):
                raise ClipError(
                    f"{file.name} is {file.header.width}x{file.header.height} but {Path(self._files[0].name).name} in "
                    f"the same folder is {header.width}x{header.height}; bring all to one size."
                )
        bits = max(file.header.bit_depth for file in self._files)
        durations = header.durations if kind else ()
        count = len(header.pictures) if kind else len(self._files)
        if len(durations) < 2:
            rate = fps or (1 / durations[0] if durations else Fraction(24))
            if fps is None and not durations and (kind is None or count > 1):
                what = "a folder of pictures" if kind is None else f"a file of {count} pages"
                LOGGER.warning(f"{name} is {what}, which have no rate: {rate} a second is assumed.")
            tick, rates, durations = Fraction(0), [rate], (1 / rate,) * count
        else:
            tick, rates = Fraction(1, 100 if kind == "GIF" else 1000), []
        self._times = [Fraction(0), *accumulate(durations)]
        shown = ((begin, end - begin) for begin, end in pairwise(self._times))
        self.timing = measure(shown, tick=tick, rates=rates, frames=frames, fps=fps)
        has_alpha = header.has_alpha
        if header.width * header.height <= _MOST_PIXELS_LOOKED_AT:
            has_alpha = is_transparent(next(self._files[0].pictures(slice(1))))
        self.info = ClipInfo(
            width=header.width,
            height=header.height,
            fps=self.timing.rate,
            frames=self.timing.count,
            color=RGB,
            pixel_aspect=Fraction(1),
            bit_depth=bits,
            codec=header.codec,
            container="image" if kind else "folder",
            has_alpha=has_alpha,
            has_audio=False,
            rotation=header.orientation.degrees,
            variable_frame_rate=not self.timing.constant,
        )

    def timed_pictures(self) -> Generator[tuple[Fraction, Picture], None, None]:
        """Decode the selected pictures; see `ClipSource`."""
        selected = self.timing.needed
        times = self._times[:-1][selected]
        if self.info.container == "image":
            pictures = self._files[0].pictures(selected)
        else:
            pictures = (next(file.pictures(slice(1))) for file in self._files[selected])
        for time, picture in zip(times, pictures, strict=True):
            yield time - self.timing.start, picture


def _file_of_folder(path: Path) -> _ImageFile:
    kind = image_kind(path, str(path))
    if kind is None:
        raise ClipError(f"{path} is no image, which its extension says; take it out of the folder.")
    header = read_header(path, str(path), kind)
    if len(header.pictures) > 1:
        LOGGER.warning(f"{path} holds {len(header.pictures)} pictures, of which the folder's clip has the first.")
    return _ImageFile(path, str(path), kind, header)


def _images_in(folder: Path) -> list[Path]:
    """Images of a folder in natural order: 2.png before 10.png; names that begin with a dot are hidden."""

    def natural_order(path: Path) -> list[str | int]:
        # Splitting at a group alternates text and digits, so only values of one type are compared.
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]

    images: list[Path] = []
    others: list[Path] = []
    try:
        paths = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=natural_order)
    except OSError as error:
        raise ClipError(f"{folder} cannot be listed ({reason(error)}); name a folder that can be.") from error
    for path in paths:
        is_named_image = path.suffix.lower() in IMAGE_SUFFIXES
        if is_named_image and not path.exists():
            raise ClipError(f"{path} is a link to a file that does not exist; restore the file or remove the link.")
        (images if is_named_image and path.is_file() else others).append(path)
    if not images:
        raise ClipError(
            f"{folder} is a folder with no images in it; images end in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    if others:
        names = ", ".join(path.name for path in others[:5]) + (f" and {len(others) - 5} more" if others[5:] else "")
        LOGGER.warning(f"{folder} holds what is no image and is left out: {names}.")
    return images
