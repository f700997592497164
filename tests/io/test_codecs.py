"""Containers and codecs that people have clips in: size, count, rate and pictures are read right.

The clips are written by the FFmpeg that PyAV carries; what it cannot write is skipped.
"""

from fractions import Fraction
from pathlib import Path

import av
import av.error
import pytest

from tests.io.sources import encode, psnr, read_all, rgb_frames, smooth_pictures

# Extension, encoder, pixel format.
CLIPS = [
    ("mp4", "libx264", "yuv420p"),
    ("mp4", "libx264", "yuv444p"),
    ("mp4", "libx264", "yuv420p10le"),
    ("mp4", "libx265", "yuv420p"),
    ("mp4", "libx265", "yuv420p10le"),
    ("mp4", "libsvtav1", "yuv420p"),
    ("mp4", "libaom-av1", "yuv420p"),
    ("mp4", "libvpx-vp9", "yuv420p"),
    ("mp4", "mpeg4", "yuv420p"),
    ("m4v", "mpeg4", "yuv420p"),
    ("3gp", "h263p", "yuv420p"),
    ("mov", "prores_ks", "yuv422p10le"),
    ("mov", "prores_ks", "yuva444p10le"),
    ("mov", "dnxhd", "yuv422p"),
    ("mov", "qtrle", "rgb24"),
    ("mov", "png", "rgb24"),
    ("mov", "mjpeg", "yuvj420p"),
    ("mov", "jpeg2000", "rgb24"),
    ("mkv", "libx264", "yuv420p"),
    ("mkv", "libx265", "yuv420p"),
    ("mkv", "ffv1", "yuv444p"),
    ("mkv", "ffv1", "gbrp16le"),
    ("mkv", "huffyuv", "rgb24"),
    ("mkv", "utvideo", "gbrp"),
    ("mkv", "rawvideo", "yuv420p"),
    ("mkv", "mpeg2video", "yuv420p"),
    ("mkv", "libtheora", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("webm", "libaom-av1", "yuv420p"),
    ("ogv", "libtheora", "yuv420p"),
    ("avi", "libx264", "yuv420p"),
    ("avi", "libxvid", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("avi", "msmpeg4", "yuv420p"),
    ("avi", "msmpeg4v2", "yuv420p"),
    ("avi", "mjpeg", "yuvj420p"),
    ("avi", "rawvideo", "bgr24"),
    ("avi", "huffyuv", "yuv422p"),
    ("avi", "ffvhuff", "yuv420p"),
    ("avi", "utvideo", "yuv420p"),
    ("avi", "magicyuv", "gbrp"),
    ("avi", "cinepak", "rgb24"),
    ("avi", "zmbv", "bgr0"),
    ("wmv", "wmv1", "yuv420p"),
    ("wmv", "wmv2", "yuv420p"),
    ("flv", "flv", "yuv420p"),
    ("flv", "libx264", "yuv420p"),
    ("ts", "libx264", "yuv420p"),
    ("ts", "mpeg2video", "yuv420p"),
    ("mts", "libx264", "yuv420p"),
    ("mpg", "mpeg1video", "yuv420p"),
    ("vob", "mpeg2video", "yuv420p"),
    ("mxf", "mpeg2video", "yuv420p"),
    ("nut", "ffv1", "bgr0"),
    ("y4m", "wrapped_avframe", "yuv420p"),
    ("ivf", "libvpx-vp9", "yuv420p"),
    ("gif", "gif", "rgb8"),
    ("webp", "libwebp_anim", "bgra"),
    ("apng", "apng", "rgb24"),
]
SIZES = {"h263p": (176, 144), "dnxhd": (1280, 720), "cinepak": (96, 64)}
COARSE = {"gif": 15.0, "cinepak": 25.0}  # dB


@pytest.mark.parametrize(("extension", "codec", "pixel_format"), CLIPS)
def test_clip_of_a_codec_and_container_is_read_right(
    tmp_path: Path, extension: str, codec: str, pixel_format: str
) -> None:
    width, height = SIZES.get(codec, (96, 64))
    pictures = smooth_pictures(6, height, width)
    options = {"libaom-av1": {"cpu-used": "8", "crf": "10", "b": "0"}, "dnxhd": {"b": "60M"}}.get(codec, {})
    quality = {} if codec.startswith(("libaom", "dnx", "libsvt")) else {"b": "4M"}
    path = tmp_path / f"a.{extension}"
    try:
        encode(path, rgb_frames(pictures, pixel_format), codec=codec, options=options | quality)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot write {codec} to {extension}: {error}")
    info, back = read_all(path)
    assert (info.width, info.height, info.frames, info.fps) == (width, height, 6, Fraction(25))
    assert not info.variable_frame_rate
    top = 65535 if info.bit_depth > 8 else 255
    assert psnr(back / top * 255, pictures) > COARSE.get(codec, 28.0)
