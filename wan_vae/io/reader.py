"""Opening and reading clips of all kinds."""

import os
import stat
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from wan_vae.arguments import check_clip_options
from wan_vae.errors import ClipError, reason
from wan_vae.io.clip import LARGEST_SIDE, Clip, ClipInfo, ClipSource
from wan_vae.io.ffmpeg_reader import AvSource
from wan_vae.io.fit import Fit, Size, check_fit
from wan_vae.io.frames import frames_to_tensor
from wan_vae.io.image_kind import image_kind
from wan_vae.io.images import ImageSource
from wan_vae.io.timing import exact_rate, format_slice

_FASTEST = 1000  # frames per second


def open_clip(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    size: Size | None = None,
    fit: Fit | None = None,
    frames: tuple[int | None, int | None] = (None, None),
    fps: Fraction | float | None = None,
    length: int | None = None,
    alpha: bool = False,
) -> Clip:
    """Open a video, an animation, a folder of images or a single image, to read it in chunks.

    Opening reads the file once without decoding it, which finds the number of frames, the frame rate and missing data;
    H.264 in separate fields and MPEG-4 that repeats frames are also decoded once, to count them. Frames are rotated
    upright, and composited over black unless `alpha` is asked for. Conversions that lose something are logged as
    warnings to the logger "wan_vae".

    Args:
        source: Path of a file that FFmpeg can play, of an image (PNG, JPEG, WebP, GIF, AVIF, BMP, TIFF), recognized by
            its content, or of a folder of images of one size, which are read in natural order (2 before 10) at 24
            frames per second, as are the pages of a TIFF. Or a binary file object that can seek, with a video or an
            image; it is read from its start and stays open.
        size: Width and height to resize to; of one that is None, the source's display aspect decides, rounded to an
            even number of square pixels. None for those of the source.
        fit: What is done where the size has another shape: "stretch" changes the pixels' shape, "crop" cuts off what is
            too much in the middle, and "pad" adds black, transparent with `alpha`; these two give square pixels. None
            stretches, with a notice where pixels are not square afterwards.
        frames: First frame and the one after the last, counted from 0 after resampling to `fps`, as in a slice.
        fps: Frame rate to resample to, with the same duration; None for that of the source. Images have no frame rate
            and are given this one.
        length: Number of frames to read from `frames[0]` on, whose `frames[1]` is then None.
        alpha: Read RGB and straight alpha, full for sources that have none. Resizing weights colors by alpha.

    Raises:
        ClipError: The source is missing, not a clip, damaged or cut short, or an option is out of range or selects no
            frames, or fewer than `length`.
    """
    check_clip_options(size, frames, length)
    if length is not None:
        frames = frames[0], (frames[0] or 0) + length
    check_fit(fit, size)
    if size is not None and not all(side is None or 1 <= side <= LARGEST_SIDE for side in size):
        given = "x".join("" if side is None else str(side) for side in size)
        raise ClipError(f"size {given} is not possible; width and height are from 1 to {LARGEST_SIDE}.")
    rate = None if fps is None else exact_rate(fps)
    if rate is not None and not Fraction(1, _FASTEST) <= rate <= _FASTEST:
        raise ClipError(
            f"{float(rate):g} frames a second is not possible; give a rate from 1/{_FASTEST} to {_FASTEST}."
        )
    if any(number is not None and number < 0 for number in frames):
        raise ClipError(
            f"frames {format_slice(frames)} counts from the end, which is not supported; count from 0 at the start."
        )
    reader: ClipSource
    if not isinstance(source, str | os.PathLike):
        if not source.seekable():
            raise ClipError("the file object cannot seek; read its content into an io.BytesIO.")
        name = "the file object"
        kind = image_kind(source, name)
        source.seek(0)
        reader = ImageSource(source.read(), name, kind, frames, rate) if kind else AvSource(source, name, frames, rate)
    elif (path := _checked(Path(source))).is_dir():
        reader = ImageSource(path, str(path), None, frames, rate)
    elif kind := image_kind(path, str(path)):
        reader = ImageSource(path, str(path), kind, frames, rate)
    else:
        reader = AvSource(path, str(path), frames, rate)
    clip = Clip(reader, size, fit, rate, alpha)
    if length is not None and clip.info.frames < length:
        held = "1 frame" if clip.info.frames == 1 else f"{clip.info.frames} frames"
        raise ClipError(
            f"{reader.name} has {held} from number {frames[0] or 0} on, at {clip.info.fps} a second; give a length of"
            f" at most that, not {length}."
        )
    return clip


def _checked(path: Path) -> Path:
    """Refuse what is neither a file nor a folder, without opening it: reading a pipe could wait without end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        hint = "; standard input cannot be read, so save it to a file" if path == Path("-") else ""
        raise ClipError(f"{path} does not exist{hint}; name a video, an image or a folder of images.") from error
    except (OSError, ValueError) as error:
        raise ClipError(f"{path} cannot be opened ({reason(error)}); name a video, an image or a folder.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ClipError(
            f"{path} is neither a file nor a folder, and only those can be read twice; save its content to a file (in "
            "Python, to an io.BytesIO)."
        )
    return path


def read_clip(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    size: Size | None = None,
    fit: Fit | None = None,
    frames: tuple[int | None, int | None] = (None, None),
    fps: Fraction | float | None = None,
    length: int | None = None,
    alpha: bool = False,
) -> tuple[Tensor, ClipInfo]:
    """Read a whole clip into memory. Arguments and errors are those of `open_clip`.

    Returns:
        The video, (1, 3, T, H, W) float32 in [-1, 1], without padding, or (1, 4, T, H, W) with alpha, -1 where it is
        transparent and 1 where it is opaque; and its properties.
    """
    with open_clip(source, size=size, fit=fit, frames=frames, fps=fps, length=length, alpha=alpha) as clip:
        info, count = clip.info, 0
        shape = 1, 4 if alpha else 3, info.frames, info.height, info.width
        video = torch.empty(shape, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
        for chunk in clip.chunks(16):
            video[:, :, count : count + len(chunk)] = frames_to_tensor(chunk)
            count += len(chunk)
    return video[:, :, :count], replace(info, frames=count)
