"""Reading one image file: its header without decoding, and its pictures.

Pillow reads them; FFmpeg reads those of more than 8 bits a channel, which Pillow reduces to 8. Its walk over the blocks
of an animation is not trusted: `animations` counts the pictures.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import av.error
import numpy as np
from PIL import ExifTags, GifImagePlugin, Image, ImageCms, TiffImagePlugin, features

from wan_vae.errors import ClipError, reason
from wan_vae.io.animations import (
    avif_bit_depth,
    avif_picture_count,
    gif_durations,
    png_durations,
    tiff_page_count,
    webp_durations,
)
from wan_vae.io.clip import LARGEST_SIDE, LOGGER, MOST_PIXELS
from wan_vae.io.color import UNSPECIFIED, RgbConverter, bit_depth
from wan_vae.io.file_names import file_url
from wan_vae.io.orientation import Orientation, Picture, from_exif

# Tags of TIFF.
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _EXTRA_SAMPLES = 254, 255, 256, 257, 258, 262, 338
_OLD_PREVIEW = 2  # value of the old subfile tag

_OPAQUE = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "I", "I;16", "I;16L", "I;16B", "F"})
_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


class ImageHeader(NamedTuple):
    """Properties of an image file read without decoding."""

    codec: str  # Pillow's name of the format, in lower case
    width: int  # of the upright picture
    height: int
    bit_depth: int
    pictures: tuple[int, ...]  # places in the file of those that are frames
    durations: tuple[Fraction, ...]  # of the pictures in seconds; none if they are pages or a still
    orientation: Orientation
    has_alpha: bool  # there is an alpha channel
    profile: str | None  # name of its color profile, None for sRGB and none


def _file(source: Path | bytes) -> BinaryIO:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


def read_header(source: Path | bytes, name: str, kind: str) -> ImageHeader:
    """Read the header of an image of a kind that `image_kind` found.

    Nothing is decoded, except an animated AVIF for its durations. A ClipError if the file is damaged, too large, or of
    a kind that cannot be read.
    """
    with _opened(source, name, kind) as (file, image), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        width, height = image.size
        bits = 8
        durations: list[Fraction] = []
        still_first = False
        if kind == "GIF":
            durations = gif_durations(file, name)
        elif kind == "PNG":
            durations, still_first, exif = png_durations(file)
            image.info |= {"exif": b"Exif\0\0" + exif} if exif else {}
            file.seek(24)
            bits = max(8, file.read(1)[0])
        elif kind == "WEBP":
            durations = webp_durations(file)
        # The other pictures of a JPEG are previews, other eyes or gain maps.
        count = 1 if kind == "JPEG" else int(getattr(image, "n_frames", 1))
        pictures: Sequence[int] = range(int(still_first and bool(durations)), count)
        if kind == "AVIF":
            bits = avif_bit_depth(file)
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            if tiff_page_count(file) != count:
                raise ValueError(f"it has {tiff_page_count(file)} pages, of which {count} can be read")
            pictures, (width, height), bits = _pages(image, name)
        # That of PngImageFile decodes the image first.
        orientation = from_exif(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
        if orientation.swap and kind != "TIFF":
            width, height = height, width
        if max(width, height) > LARGEST_SIDE or width * height > MOST_PIXELS:
            raise ClipError(
                f"{name} is {width}x{height}, which is too large: sides have up to {LARGEST_SIDE} pixels, and pictures "
                f"up to {MOST_PIXELS // 1_000_000} million; reduce it with an image editor first."
            )
        if image.mode not in _OPAQUE | _WITH_ALPHA:
            raise ClipError(f"{name} has pixels of kind {image.mode}, which cannot be read; convert it to RGB first.")
        announced = avif_picture_count(file) if kind == "AVIF" else len(durations)
        if announced and announced != len(pictures):
            raise ValueError(f"it has {announced} pictures, of which {len(pictures)} can be read")
        if kind == "AVIF" and count > 1:
            durations = _decoded_durations(image)
        for warning in caught[:1]:
            LOGGER.warning(f"{name} may be damaged: {warning.message}")
        return ImageHeader(
            (image.format or kind).lower(),
            *(width, height, bits),
            tuple(pictures),
            tuple(durations),
            orientation,
            has_alpha=_may_be_transparent(image),
            profile=_other_profile(image),
        )


def _other_profile(image: Image.Image) -> str | None:
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, ImportError, OSError):  # damaged, or a Pillow without LittleCMS
        name = "that cannot be read"
    return None if "sRGB" in name else name


def _may_be_transparent(image: Image.Image) -> bool:
    return image.mode in _WITH_ALPHA or "transparency" in image.info or image.format == "GIF"


def _decoded_durations(image: Image.Image) -> list[Fraction]:
    """Durations of an AVIF, in whole milliseconds from the start, so that rounding does not add up."""
    times: list[int] = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        image.load()
        times.append(image.info["timestamp"])
    times.append(times[-1] + image.info["duration"])
    return [Fraction(end - begin, 1000) or Fraction(1, 10) for begin, end in pairwise(times)]


def _pages(image: TiffImagePlugin.TiffImageFile, name: str) -> tuple[list[int], tuple[int, int], int]:
    """Pages of a TIFF that are no previews, their upright size, and their bits a channel."""
    pages: list[int] = []
    sizes: list[tuple[int, int]] = []
    depths: list[int] = []
    for index in range(image.n_frames):
        image.seek(index)
        tags = image.tag_v2
        if tags.get(_SUBFILE, 0) & 1 or tags.get(_OLD_SUBFILE, 1) == _OLD_PREVIEW:
            continue
        width, height = tags[_WIDTH], tags[_HEIGHT]
        swap = from_exif(tags.get(ExifTags.Base.Orientation, 1)).swap
        pages.append(index)
        sizes.append((height, width) if swap else (width, height))
        depths.append(max(8, *tags.get(_BITS, (1,))))
        if image.mode == "I" or (depths[-1] > 16 and image.mode != "F"):
            raise ClipError(
                f"{name} has integers of {depths[-1]} bits or with a sign, whose white is unknown; convert it to "
                "unsigned ones of 16 bits."
            )
        if sizes[-1] != sizes[0]:
            raise ClipError(
                f"page {index} of {name} is {sizes[-1][0]}x{sizes[-1][1]} but page {pages[0]} is "
                f"{sizes[0][0]}x{sizes[0][1]}; save the pages as separate files."
            )
    if not pages:
        raise ClipError(f"{name} holds only previews of a picture, as camera raw files do; convert it to PNG first.")
    image.seek(pages[0])
    return pages, sizes[0], max(depths)


def read_pictures(
    source: Path | bytes, name: str, kind: str, header: ImageHeader, selected: slice
) -> Iterator[Picture]:
    """Decode pictures of a file, counted as in `header.pictures`: upright, (height, width, 3 or 4).

    A ClipError if one is damaged or of another size than the header says.
    """
    with _opened(source, name, kind) as (_, image):
        for index in header.pictures[selected]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _seek(image, index)
                tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else None
                orientation = from_exif(tags.get(ExifTags.Base.Orientation, 1)) if tags else header.orientation
                picture = _deep_picture(source, image, kind, index) if header.bit_depth > 8 else None
                if picture is None:
                    picture = _picture(image, header.bit_depth, name)
                    orientation = Orientation() if tags else orientation  # Pillow has turned it upright
                picture = orientation.apply(picture)
            if picture.shape[:2] != (header.height, header.width):
                raise ValueError(
                    f"picture {index} is {picture.shape[1]}x{picture.shape[0]}, not {header.width}x{header.height}"
                )
            yield picture


def _seek(image: Image.Image, index: int) -> None:
    if not isinstance(image, GifImagePlugin.GifImageFile):
        image.seek(index)
        return
    for step in range(image.tell() + 1, index + 1):
        # Pillow disposes of a picture that does not say how like of the one before.
        image.disposal_method = 0
        image.seek(step)


def _picture(image: Image.Image, bits: int, name: str) -> Picture:
    """Decode the current picture through Pillow."""
    white_is_zero = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
    image.load()
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ClipError(f"{name} has samples outside 0 to 1 or not a number; scale them to 0 (black) to 1 (white).")
        picture = np.rint((1 - values if white_is_zero else values) * 65535).astype(np.uint16)[..., None].repeat(3, 2)
    elif image.mode.startswith("I"):  # up to 16 bits
        top = (1 << bits) - 1
        values = np.asarray(image).astype(np.uint32)
        values = top - values if white_is_zero else values
        picture = ((values * 65535 + top // 2) // top).astype(np.uint16)[..., None].repeat(3, 2)
    else:
        mode = "RGBA" if _may_be_transparent(image) else "RGB"
        picture = np.asarray(image if image.mode == mode else image.convert(mode))
    return picture


def _deep_picture(source: Path | bytes, image: Image.Image, kind: str, page: int) -> Picture | None:
    """Decode a picture of more than 8 bits a channel through FFmpeg; None if it cannot."""
    demuxer = {"PNG": "png_pipe", "TIFF": "tiff_pipe"}.get(kind)
    if image.mode == "F" or (kind != "TIFF" and getattr(image, "n_frames", 1) > 1):
        return None  # of an animation FFmpeg would give the first picture
    if demuxer is None and image.mode != "RGB":
        return None  # the alpha of AVIF is a stream of its own
    file = file_url(source) if isinstance(source, Path) else io.BytesIO(source)
    size = getattr(image, "_tile_size", image.size)  # as stored
    try:
        with av.open(file, "r", format=demuxer) as container:
            if kind == "TIFF":
                container.streams.video[0].codec_context.options = {"page": str(page + 1)}
            frame = next(container.decode(video=0))
    except (av.error.FFmpegError, OSError, StopIteration):
        return None
    if bit_depth(frame.format) <= 8 or (frame.width, frame.height) != size:
        return None
    picture = RgbConverter(frame, UNSPECIFIED, UNSPECIFIED)(frame)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_EXTRA_SAMPLES) == (1,):
        # The colors are multiplied with alpha.
        straight = picture[..., :3].astype(np.uint32) * 65535 // np.maximum(picture[..., 3:], 1)
        picture = np.concatenate([np.minimum(straight, 65535).astype(np.uint16), picture[..., 3:]], axis=2)
    return picture


@contextmanager
def _opened(source: Path | bytes, name: str, kind: str) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """Open an image; damage that comes to light while it is open is a ClipError."""
    try:
        with _file(source) as file, _file(source) as also:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                Image.init()
                if kind not in Image.OPEN or (kind == "AVIF" and not features.check("avif")):
                    raise ClipError(
                        f"{name} is {kind}, which this Pillow cannot read; convert it to PNG or JPEG"
                        f"{', or install Pillow 11.3 or newer' if kind == 'AVIF' else ''}."
                    )
                # `Image.open` would add a limit on the number of pixels, before which nothing has been decoded.
                image = Image.OPEN[kind][0](also, "")
            yield file, image
    except ClipError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly all kinds of errors for damaged files
        raise ClipError(
            f"{name} cannot be read as an image ({reason(error)}); fetch or copy it again, or convert it to PNG."
        ) from error
