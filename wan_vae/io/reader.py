"""Opening clips to read, whatever they are."""

from fractions import Fraction
from pathlib import Path

from wan_vae.errors import ClipError
from wan_vae.io.clip import Clip, Notices, Selection, Source
from wan_vae.io.ffmpeg_reader import AvSource
from wan_vae.io.images import IMAGE_SUFFIXES, ImageSource
from wan_vae.io.timing import span

LARGEST_SIDE = 16384
"""Pixels; twice the side of 8K."""

FASTEST = 1000
"""Frames a second that a clip can be resampled to."""


def open_clip(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    frames: tuple[int | None, int | None] = (None, None),
    fps: Fraction | None = None,
) -> Clip:
    """Open a video, an animation, a folder of pictures or a single picture.

    The file is gone through once, without decoding it, so that its number of frames and their rate are known and a
    file cut short is found out. Pictures are turned upright and laid over black where they are transparent; this and
    all else that is not plainly the source is logged as a warning to the logger "wan_vae".

    Args:
        path: A file FFmpeg can play, an image (PNG, JPEG, WebP, BMP, TIFF), or a folder of images of one size, which
            are taken in natural order (2 before 10) at 24 a second.
        size: Width and height to scale to; None leaves them.
        frames: The frames to read by index from 0, as in a slice: first, and the one after the last.
        fps: Frames a second to resample the selected frames to, keeping their duration; None leaves them. For a folder
            and a single picture, which have no rate, it is the rate they are taken to have.

    Raises:
        ClipError: `path` is missing, is not a clip, is damaged or cut short as far as can be seen, or an option is
            out of range or selects no frames.
    """
    if size is not None and not 1 <= min(size) <= max(size) <= LARGEST_SIDE:
        raise ClipError(f"size {size[0]}x{size[1]} is not possible; width and height are from 1 to {LARGEST_SIDE}.")
    if fps is not None and not Fraction(1, FASTEST) <= fps <= FASTEST:
        raise ClipError(f"{fps} frames a second is not possible; give a rate from 1/{FASTEST} to {FASTEST}.")
    if any(number is not None and number < 0 for number in frames):
        raise ClipError(
            f"frames {span(frames)} counts from the end, which is not supported; count from 0 at the start."
        )
    if not path.exists():
        raise ClipError(f"{path} does not exist; name a video, an image or a folder of images.")
    selection = Selection(size, frames, fps)
    notices = Notices()
    source: Source
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        source = ImageSource(path, selection, notices)
    else:
        source = AvSource(path, selection, notices)
    return Clip(source)
