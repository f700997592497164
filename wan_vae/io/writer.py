"""Clips to write, whatever they are."""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av.error
import numpy as np
import numpy.typing as npt

from wan_vae.errors import ClipError
from wan_vae.io.atomic_output import written_beside
from wan_vae.io.audio import AudioSource, reason
from wan_vae.io.clip import Notices
from wan_vae.io.color import Color
from wan_vae.io.ffmpeg_writer import LOSSLESS, LOSSY, AvSink
from wan_vae.io.images import PICTURE_SUFFIXES, FolderSink, PictureSink
from wan_vae.io.orientation import Picture

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_JPEG_SUFFIXES = (".jpg", ".jpeg")
_SOUNDLESS = (".gif", ".webp")


class Sink(Protocol):
    """Something pictures can be written to, one after another, and that is then either finished or aborted."""

    def write(self, picture: Picture) -> None:
        """Append a (height, width, 3) uint8 picture."""

    def finish(self) -> None:
        """Complete and close it."""

    def abort(self) -> None:
        """Close it without completing it."""


class ClipWriter:
    """A clip being written. A context manager.

    The clip stands under its name only once it is left without an exception; otherwise nothing is left of it.
    """

    def __init__(self, path: Path, make_sink: Callable[[Path], Sink], width: int, height: int) -> None:
        """Use `create_clip` instead."""
        self._path = path
        self._make_sink = make_sink
        self._shape = (height, width, 3)
        self._count = 0
        self._ended = False

    def __enter__(self) -> "ClipWriter":
        with self._reported(), ExitStack() as stack:
            beside = stack.enter_context(written_beside(self._path))
            self._sink = self._make_sink(beside)
            stack.push(self._conclude)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._reported():
            self._stack.__exit__(kind, error, traceback)

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        """Append frames, (n, height, width, 3) RGB of full range.

        Raises:
            ClipError: There is no room, the file cannot be written for another reason, or it holds but one picture.
            ValueError: The frames are not of this clip's size or not uint8.
        """
        if frames.ndim != 4 or frames.shape[1:] != self._shape or frames.dtype != np.uint8:
            height, width, _ = self._shape
            raise ValueError(
                f"frames of shape {frames.shape} and type {frames.dtype} do not fit; "
                f"(n, {height}, {width}, 3) of uint8 do."
            )
        with self._reported():
            for picture in frames:
                self._sink.write(picture)
                self._count += 1

    def finish(self) -> None:
        """Complete the clip, so that leaving it only gives it its name; without this, leaving completes it.

        For outputs that are to stand together or not at all: finish them all before leaving the first.

        Raises:
            ClipError: There were no frames, or there is no room, or the file cannot be written for another reason.
        """
        if self._ended:
            return
        self._ended = True
        with self._reported():
            if self._count == 0:
                self._sink.abort()
                raise ClipError(f"{self._path} was not written, for there were no frames; write at least one.")
            self._sink.finish()

    def _conclude(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif not self._ended:
            self._sink.abort()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            hint = "; make room or name another place" if error.errno in NO_ROOM else ""
            raise ClipError(f"{self._path} cannot be written ({reason(error)}){hint}.") from error


def create_clip(
    path: Path,
    *,
    width: int,
    height: int,
    fps: Fraction,
    color: Color,
    pixel_aspect: Fraction = Fraction(1),
    lossless: bool = False,
    audio: AudioSource | None = None,
) -> ClipWriter:
    """Begin a clip, of the kind the ending of its name stands for.

    - .mp4, .mov, .mkv, .avi: H.264; lossless H.264 of RGB (mp4, mov) or FFV1 (mkv, avi).
    - .webm: VP9.
    - .gif: 256 colors for each frame, times to 1/100 s; never lossless.
    - .webp: animated; times to 1/1000 s.
    - none: a folder of PNG files, 000000.png and on.
    - .png, .bmp, .tif, .tiff, .jpg: a single picture; JPEG is never lossless.

    All but a single picture are written as they come, in memory that does not grow with the clip.

    Args:
        path: Where to. What stands there is replaced, unless it is a folder that holds something.
        width: In pixels.
        height: In pixels.
        fps: Frames a second, kept exactly where the file's unit of time allows.
        color: What to store the pictures as, for those kinds that store YUV. RGB is stored as BT.709 of limited range.
        pixel_aspect: Width of a pixel over its height; video only.
        lossless: Whether the same RGB must come back for every frame.
        audio: Sound to carry over, from `Clip.audio`; it ends with the last frame. Left out with a warning to the
            logger "wan_vae" if this kind of file cannot hold it.

    Raises:
        ClipError: `path` has an unknown ending or is a folder where a file is to stand, or the other way around; or
            its kind cannot do what is asked for.
    """
    suffix = path.suffix.lower()
    notices = Notices()
    if width < 1 or height < 1 or fps <= 0:
        raise ClipError(f"a clip of {width}x{height} at {fps} frames a second is not possible; all must be above 0.")
    if suffix and path.is_dir():
        raise ClipError(f"{path} is a folder; name a file, or a folder without an ending for PNG files.")
    if not suffix and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ClipError(f"{path} exists and is not an empty folder; name a new folder for the PNG files.")
    if audio is not None and (suffix not in LOSSY or suffix in _SOUNDLESS):
        notices.give(f"{path} cannot hold sound; that of {audio.path} is left out.")
        audio = None
    make_sink: Callable[[Path], Sink]
    if not suffix:
        make_sink = FolderSink
    elif suffix in PICTURE_SUFFIXES:
        if lossless and suffix in _JPEG_SUFFIXES:
            raise ClipError(f"{path} cannot be lossless, as a JPEG; name a .png.")
        make_sink = PictureSink
    elif suffix in LOSSY:
        if lossless and suffix not in LOSSLESS:
            raise ClipError(f"{path} cannot be lossless; these can: a folder, {', '.join(LOSSLESS)}.")
        form = (LOSSLESS if lossless else LOSSY)[suffix]
        if form.fastest is not None and fps > form.fastest:
            raise ClipError(
                f"{path} cannot hold {float(fps):g} frames a second; give at most {form.fastest}, or name an .mp4."
            )
        if form.ticks is not None and form.ticks % fps != 0:
            notices.give(f"{path} counts time in 1/{form.ticks} s, so its rate will only be near {float(fps):g}.")
        make_sink = partial(
            AvSink,
            form=form,
            width=width,
            height=height,
            fps=fps,
            color=color,
            pixel_aspect=pixel_aspect,
            audio=audio,
            notices=notices,
        )
    else:
        known = ", ".join((*LOSSY, *PICTURE_SUFFIXES))
        raise ClipError(f"{path} has an unknown ending; known are {known}, and none for a folder of PNG files.")
    return ClipWriter(path, make_sink, width, height)
