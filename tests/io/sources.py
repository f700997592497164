"""Tiny clips for the tests, made with FFmpeg directly so that making them does not depend on what is tested."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from wan_vae.io import ClipInfo, open_clip

Array = npt.NDArray[Any]

LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
MATRIX_CODES = {"bt601": 6, "bt709": 1, "bt2020": 9}


def smooth_pictures(count: int, height: int, width: int) -> Array:
    """(count, height, width, 3) uint8 that differ from frame to frame and have no edges."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    channels = [
        np.stack([127 + 100 * np.sin(4 * rows + n / 3), 127 + 100 * np.cos(5 * columns + n / 4), 200 * rows], -1)
        for n in range(count)
    ]
    return np.stack(channels).astype(np.uint8)


def rgb_from_yuv(planes: Sequence[Array], matrix: str, full_range: bool, bits: int) -> Array:
    """Full-resolution planes to RGB in 0..1 by the definition of the standards, in float64."""
    red_weight, blue_weight = LUMA_WEIGHTS[matrix]
    green_weight = 1 - red_weight - blue_weight
    unit = 1 << (bits - 8)
    luma, blue, red = (plane.astype(np.float64) for plane in planes)
    top = (1 << bits) - 1
    luma = luma / top if full_range else (luma - 16 * unit) / (219 * unit)
    chroma_span = top if full_range else 224 * unit
    blue, red = (blue - 128 * unit) / chroma_span, (red - 128 * unit) / chroma_span
    r = luma + 2 * (1 - red_weight) * red
    b = luma + 2 * (1 - blue_weight) * blue
    g = (luma - red_weight * r - blue_weight * b) / green_weight
    return np.clip(np.stack([r, g, b], -1), 0, 1)


def yuv_from_rgb(rgb: Array, matrix: str, full_range: bool, bits: int) -> list[Array]:
    """The inverse, rounded to samples."""
    red_weight, blue_weight = LUMA_WEIGHTS[matrix]
    unit = 1 << (bits - 8)
    top = (1 << bits) - 1
    luma = rgb @ np.array([red_weight, 1 - red_weight - blue_weight, blue_weight])
    blue, red = (rgb[..., 2] - luma) / (2 * (1 - blue_weight)), (rgb[..., 0] - luma) / (2 * (1 - red_weight))
    if full_range:
        planes = [luma * top, blue * top + 128 * unit, red * top + 128 * unit]
    else:
        planes = [luma * 219 * unit + 16 * unit, blue * 224 * unit + 128 * unit, red * 224 * unit + 128 * unit]
    return [np.clip(np.rint(plane), 0, top).astype(np.uint8 if bits == 8 else np.uint16) for plane in planes]


def frame_of_planes(planes: Sequence[Array], pixel_format: str) -> av.VideoFrame:
    """A planar frame of these planes."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pixel_format)
    for stored, values in zip(frame.planes, planes, strict=True):
        lines = np.zeros((stored.height, stored.line_size // values.itemsize), values.dtype)
        lines[:, : values.shape[1]] = values
        stored.update(lines.tobytes())
    return frame


def planes_of_frame(frame: av.VideoFrame) -> list[Array]:
    """The planes of a planar frame."""
    kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    return [np.frombuffer(memoryview(p), kind).reshape(p.height, -1)[:, : p.width].copy() for p in frame.planes]


def encode(
    path: Path,
    frames: Sequence[av.VideoFrame],
    *,
    codec: str = "ffv1",
    rate: Fraction = Fraction(25),
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    matrix: str | None = None,
    full_range: bool | None = None,
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
    audio_codec: str | None = None,
    metadata: dict[str, str] | None = None,
    pixel_aspect: Fraction = Fraction(1),
) -> Path:
    """Write frames to `path`, tagged only with what is given; `times` are in units of 1/rate."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        if pixel_aspect != 1:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if matrix is not None:
            stream.codec_context.colorspace = MATRIX_CODES[matrix]
        if full_range is not None:
            stream.codec_context.color_range = 2 if full_range else 1
        if rotation:
            if not hasattr(av.VideoStream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write rotated video")
            stream.set_display_rotation(rotation)
        stream.metadata.update(metadata or {})
        audio: Any = container.add_stream(audio_codec, rate=48000, layout="stereo") if audio_codec else None
        if audio is not None:
            samples = int(len(frames) / rate * 48000)
            tone = (8000 * np.sin(np.arange(samples) / 20)).astype(np.int16)
            heard = av.AudioFrame.from_ndarray(np.repeat(tone, 2)[None], format="s16", layout="stereo")
            heard.sample_rate, heard.pts = 48000, 0
            container.mux(audio.encode(heard))
            container.mux(audio.encode(None))
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = times[number] if times else number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rgb_frames(pictures: Array, pixel_format: str = "bgr0") -> list[av.VideoFrame]:
    """Frames of (count, height, width, 3) pictures."""
    return [av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixel_format) for picture in pictures]


def read_all(path: Path, count: int = 5, **options: Any) -> tuple[ClipInfo, Array]:
    """What a clip says it is, and all its pictures, which must agree with that."""
    with open_clip(path, **options) as clip:
        chunks = list(clip.chunks(count))
        assert all(len(chunk) == count for chunk in chunks[:-1])
        assert 1 <= len(chunks[-1]) <= count
        pictures = np.concatenate(chunks)
        assert clip.info.frames == len(pictures)
        assert pictures.shape[1:] == (clip.info.height, clip.info.width, 4 if options.get("alpha") else 3)
        return clip.info, pictures


def psnr(first: Array, second: Array, top: float = 255) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal arrays."""
    error = np.mean((first.astype(np.float64) - second) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(top**2 / error))
