"""Writing clips of all kinds."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av.error
import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_vae.errors import ClipError, reason
from wan_vae.io.atomic_output import OutputTakenError, check_output, written_beside
from wan_vae.io.audio import AudioSource
from wan_vae.io.clip import LOGGER, ClipSink
from wan_vae.io.color import RGB, Color
from wan_vae.io.ffmpeg_writer import LOSSY, LOSSY_ALPHA, AvSink, formats
from wan_vae.io.frames import single_clip, tensor_to_frames
from wan_vae.io.orientation import Picture
from wan_vae.io.timing import exact_rate
from wan_vae.io.webp_writer import WebPSink

STILL_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Written as a single image; .webp is written as an animation."""

JPEG_SUFFIXES = (".jpg", ".jpeg")

_STILL_SUFFIXES_OF_ALPHA = (".png", ".tif", ".tiff")

_LARGEST_JPEG, _LARGEST_PNG = 65500, 2**31 - 1  # pixels a side


class ClipWriter:
    """A clip being written. A context manager.

    The output appears under its name when the context is left without an exception; otherwise nothing is left of it.
    """

    def __init__(
        self, path: Path, make_sink: Callable[[Path], ClipSink], shape: tuple[int, int, int], overwrite: bool
    ) -> None:
        """Use `create_clip` instead; `shape` is that of a frame, (height, width, 3 or 4)."""
        self._path = path
        self._make_sink = make_sink
        self._shape = shape
        self._overwrite = overwrite
        self._count = 0
        self._ended = False

    def __enter__(self) -> "ClipWriter":
        with self._reported(), ExitStack() as stack:
            temporary = stack.enter_context(written_beside(self._path, overwrite=self._overwrite))
            self._sink = self._make_sink(temporary)
            stack.push(self._conclude)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self._ended and isinstance(exc_info[1], OutputTakenError):
            exc_info = (None, None, None)  # another output has another name, but this one is whole
        with self._reported():
            self._stack.__exit__(*exc_info)

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames, (n, height, width, 3) full-range RGB, or (n, height, width, 4) to a clip with alpha.

        Raises:
            ClipError: The disk is full, the file cannot be written, or it holds a single picture.
            ValueError: The frames have another size or number of channels, or are not uint8.
        """
        if frames.ndim != 4 or frames.shape[1:] != self._shape or frames.dtype != np.uint8:
            height, width, channels = self._shape
            raise ValueError(
                f"frames of shape {frames.shape} and type {frames.dtype} do not fit; "
                f"(n, {height}, {width}, {channels}) of uint8 do."
            )
        with self._reported():
            for picture in frames:
                self._sink.write(picture)
                self._count += 1

    def finish(self) -> None:
        """Complete the clip now; leaving the context then only renames it.

        To write several outputs or none, finish all of them before leaving the first.

        Raises:
            ClipError: There are no frames, the disk is full, or the file cannot be written.
        """
        if self._ended:
            return
        self._ended = True
        with self._reported():
            if self._count == 0:
                self._sink.abort()
                raise ClipError(f"{self._path} was not written, for there were no frames; write at least one.")
            self._sink.finish()

    def _conclude(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.finish()
        elif not self._ended:
            self._sink.abort()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
            hint = "; make room or name another place" if full else ""
            raise ClipError(f"{self._path} cannot be written ({reason(error)}){hint}.") from error


def create_clip(
    path: str | os.PathLike[str],
    *,
    width: int,
    height: int,
    fps: Fraction | float,
    color: Color = RGB,
    pixel_aspect: Fraction = Fraction(1),
    lossless: bool = False,
    audio: AudioSource | None = None,
    overwrite: bool = True,
    alpha: bool = False,
) -> ClipWriter:
    """Create a clip to write frames to. The suffix of its name selects the format:

    - .mp4, .mov, .mkv, .avi: H.264; lossless H.264 of RGB (mp4, mov) or FFV1 (mkv, avi).
    - .webm: VP9.
    - .gif: 256 colors a frame, timestamps in 1/100 s; never lossless.
    - .webp: animated, timestamps in 1/1000 s.
    - none: a folder of PNG files 000000.png, 000001.png and so on.
    - .png, .bmp, .tif, .tiff, .jpg: a single picture; JPEG is never lossless.

    With alpha, a .mov is ProRes 4444 with alpha of 16 bits, lossless QuickTime Animation; a .mkv always FFV1; a .webm
    VP9 with alpha, never lossless; .webp, folder, .png, .tif and .tiff are as above; others cannot keep it.

    Frames are encoded as they come, so memory does not grow with the length of the clip.

    Args:
        path: Output. An existing file or empty folder is replaced; missing parent folders are created.
        width: Of the frames, in pixels.
        height: Of the frames, in pixels.
        fps: Frame rate, stored exactly where the time unit of the format allows.
        color: Color of the stored samples in formats that store YUV. RGB is stored as limited-range BT.709.
        pixel_aspect: Width of a pixel over its height; video only.
        lossless: Store every frame without loss.
        audio: Audio to copy, from `Clip.audio`; it ends with the last frame. If the format cannot store it, it is left
            out with a warning to the logger "wan_vae".
        overwrite: Replace a file that appears before the clip is complete. Otherwise the clip gets another name, and
            leaving its context raises a UserError that says which.
        alpha: Write frames of 4 channels, RGB and straight alpha.

    Raises:
        ClipError: The suffix is unknown, a folder is in the place of a file or the reverse, or the format does not
            support what is asked for.
    """
    path, fps = Path(path), exact_rate(fps)
    check_clip(path, fps=fps, lossless=lossless, alpha=alpha)
    suffix = path.suffix.lower()
    form = formats(lossless=lossless, alpha=alpha).get(suffix)
    other = _holding_most(alpha)
    largest = form.largest_side if form else _LARGEST_JPEG if suffix in JPEG_SUFFIXES else _LARGEST_PNG
    if width < 1 or height < 1:
        raise ClipError(f"a clip of {width}x{height} pixels is not possible; both must be above 0.")
    if max(width, height) > largest:
        raise ClipError(f"{path} cannot be {width}x{height}; with this extension, sides have up to {largest} pixels.")
    if audio is not None and (form is None or suffix in (".gif", ".webp")):
        LOGGER.warning(f"{path} cannot hold audio; that of {audio.path} is left out.")
        audio = None
    if pixel_aspect != 1 and not (form and form.stores_aspect):
        LOGGER.warning(
            f"{path} cannot say that its pixels are {pixel_aspect} as wide as high, as {other} could; players will take"
            " them for square."
        )
    if not color.is_usual and not (form and form.stores_color):
        LOGGER.warning(
            f"{path} cannot say that its colors are not the usual ones (primaries {color.primaries}, transfer "
            f"{color.transfer}), as {other} could; they will look wrong."
        )
    make_sink: Callable[[Path], ClipSink]
    if form is None:
        make_sink = PictureSink if suffix else FolderSink
    else:
        if form.ticks is not None and form.ticks % fps != 0:
            LOGGER.warning(f"{path} counts time in 1/{form.ticks} s, so its rate will only be near {float(fps):g}.")
        if suffix == ".webp":
            make_sink = partial(WebPSink, fps, lossless)
        else:
            make_sink = partial(AvSink, form, width, height, fps, color, pixel_aspect, audio)
    return ClipWriter(path, make_sink, (height, width, 4 if alpha else 3), overwrite)


def check_clip(path: Path, *, fps: Fraction, lossless: bool, alpha: bool = False) -> None:
    """Raise a ClipError if no clip of this name and rate can be written; see `create_clip`."""
    suffix = path.suffix.lower()
    if suffix and suffix not in LOSSY and suffix not in STILL_SUFFIXES:
        known = ", ".join((*LOSSY, *STILL_SUFFIXES))
        raise ClipError(f"{path} has an unknown extension; known are {known}, and none for a folder of PNG files.")
    if suffix and path.is_dir():
        raise ClipError(f"{path} is a folder; name a file, or a folder without an extension for PNG files.")
    if not suffix and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ClipError(f"{path} exists and is not an empty folder; name a new folder for the PNG files.")
    if lossless and suffix in JPEG_SUFFIXES:
        raise ClipError(f"{path} cannot be lossless, as a JPEG; name a .png.")
    keeping_alpha = (*LOSSY_ALPHA, *_STILL_SUFFIXES_OF_ALPHA)
    if alpha and suffix and suffix not in keeping_alpha:
        raise ClipError(f"{path} cannot keep alpha; these can: a folder, {', '.join(keeping_alpha)}.")
    able = formats(lossless=lossless, alpha=alpha)
    if lossless and suffix in LOSSY and suffix not in able:
        what = "lossless with alpha" if alpha else "lossless"
        raise ClipError(f"{path} cannot be {what}; these can: a folder, {', '.join(able)}.")
    if suffix in able:
        form = able[suffix]
        if not form.slowest <= fps <= form.fastest:
            raise ClipError(
                f"{path} cannot hold {float(fps):g} frames a second; give from {float(form.slowest):g} to"
                f" {float(form.fastest):g}, or name {_holding_most(alpha)}."
            )


def _holding_most(alpha: bool) -> str:
    """The kind of file to name where another cannot hold what a clip has."""
    return "a .mov" if alpha else "an .mp4"


def write_clip(
    path: str | os.PathLike[str],
    video: Tensor,
    *,
    fps: Fraction | float,
    color: Color = RGB,
    pixel_aspect: Fraction = Fraction(1),
    lossless: bool = False,
    audio: AudioSource | None = None,
    overwrite: bool = False,
) -> None:
    """Write a whole video to a clip, which appears under its name only when it is complete.

    Args:
        path: Output, whose suffix selects the format. It and the other arguments are those of `create_clip`.
        video: (1, 3, T, H, W) or (3, T, H, W), floating point in [-1, 1], on any device. With 4 for 3 the clip has
            alpha, -1 where it is transparent and 1 where it is opaque.
        overwrite: Replace an existing file.

    Raises:
        UserError: The video has another shape or holds NaN, `path` is taken, or see `create_clip`.
    """
    clip = single_clip(video)
    check_output(path, overwrite=overwrite, inputs=(audio.path,) if audio else (), may_be_folder=not Path(path).suffix)
    channels, _, height, width = clip.shape
    create = partial(create_clip, path, fps=fps, color=color, pixel_aspect=pixel_aspect, alpha=channels == 4)
    with create(width=width, height=height, lossless=lossless, audio=audio, overwrite=overwrite) as writer:
        for chunk in torch.split(clip, 16, dim=1):
            writer.write(tensor_to_frames(chunk))


def write_picture(path: Path, picture: Picture) -> None:
    """Write a (height, width, 3 or 4) uint8 picture; the suffix of `path` selects the format."""
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix.lower() in JPEG_SUFFIXES else {}
    iio.imwrite(path, picture, plugin="pillow", **options)


class FolderSink(ClipSink):
    """Writer of a folder of PNG files 000000.png, 000001.png and so on."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._path = path
        self._count = 0

    def write(self, picture: Picture) -> None:
        """Write a (height, width, 3 or 4) uint8 picture to the next file."""
        write_picture(self._path / f"{self._count:06}.png", picture)
        self._count += 1


class PictureSink(ClipSink):
    """Writer of a single image file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._picture: Picture | None = None

    def write(self, picture: Picture) -> None:
        """Keep a (height, width, 3 or 4) uint8 picture; a ClipError for the second one."""
        if self._picture is not None:
            raise ClipError(
                f"an image file ({self._path.suffix}) holds one picture, not several; name a folder, that is, a path "
                "without an extension."
            )
        self._picture = picture.copy()

    def finish(self) -> None:
        """Write the file."""
        if self._picture is not None:
            write_picture(self._path, self._picture)
