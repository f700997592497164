"""RGB read from YUV and YUV written from RGB, against the standards' own arithmetic."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.io.sources import (
    encode,
    frame_of_planes,
    planes_of_frame,
    psnr,
    read_all,
    rgb_frames,
    rgb_from_yuv,
    smooth_pictures,
    yuv_from_rgb,
)
from wan_vae.errors import ClipError
from wan_vae.io import Color, create_clip, open_clip
from wan_vae.io.color import Resizer, eight_bits


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("bits", "layout"), [(8, "yuv444p"), (10, "yuv444p10le"), (12, "yuv444p12le")])
def test_whole_chroma_is_exact(tmp_path: Path, matrix: str, full_range: bool, bits: int, layout: str) -> None:
    rgb = np.random.default_rng(0).random((24, 40, 3))
    rgb[0], rgb[1] = 1, 0
    planes = yuv_from_rgb(rgb, matrix, full_range, bits)
    path = encode(tmp_path / "a.mkv", [frame_of_planes(planes, layout)] * 2, matrix=matrix, full_range=full_range)
    info, pictures = read_all(path)
    assert (info.color.matrix, info.color.full_range, info.bit_depth) == (matrix, full_range, bits)
    top = 255 if bits == 8 else 65535
    assert pictures.dtype == (np.uint8 if bits == 8 else np.uint16)
    wanted = rgb_from_yuv(planes, matrix, full_range, bits) * top
    assert np.abs(pictures[0] - wanted).max() <= 1
    assert (pictures[0, 0] == top).all()
    assert (pictures[0, 1] == 0).all()


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("layout", ["yuv420p", "yuv420p10le"])
def test_halved_chroma_is_close_on_smooth_content(tmp_path: Path, matrix: str, layout: str) -> None:
    bits = 8 if layout == "yuv420p" else 10
    rows, columns = np.mgrid[:96, :128] / 128
    rgb = np.stack([0.2 + 0.6 * rows, 0.8 - 0.6 * columns, 0.3 + 0.2 * rows + 0.2 * columns], -1)
    luma, blue, red = yuv_from_rgb(rgb, matrix, False, bits)
    # Chroma sits on every second column and between every second pair of rows.
    half_blue, half_red = (((p[::2, ::2].astype(int) + p[1::2, ::2] + 1) // 2).astype(p.dtype) for p in (blue, red))
    path = encode(tmp_path / "a.mkv", [frame_of_planes([luma, half_blue, half_red], layout)], matrix=matrix)
    _, pictures = read_all(path)
    top = np.iinfo(pictures.dtype).max
    assert psnr(pictures[0], rgb_from_yuv([luma, blue, red], matrix, False, bits) * top, top) >= 50


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("bits", "layout"), [(8, "gray"), (10, "gray10le")])
def test_gray_is_read_by_its_range(tmp_path: Path, full_range: bool, bits: int, layout: str) -> None:
    unit = 1 << (bits - 8)
    black, white = (0, 256 * unit - 1) if full_range else (16 * unit, 235 * unit)
    luma = np.linspace(black, white, 64).round().astype(np.uint8 if bits == 8 else np.uint16)
    frame = frame_of_planes([np.tile(luma, (48, 1))], layout)
    _, pictures = read_all(encode(tmp_path / "a.mkv", [frame], full_range=full_range))
    top = np.iinfo(pictures.dtype).max
    wanted = (luma.astype(float) - black) / (white - black) * top
    assert np.abs(pictures[0] - wanted[None, :, None]).max() <= 0.51
    assert (pictures[0, :, 0].max(), pictures[0, :, -1].min()) == (0, top)


@pytest.mark.parametrize(("width", "height", "matrix"), [(64, 48, "bt601"), (64, 720, "bt709"), (1280, 48, "bt709")])
def test_untagged_color_goes_by_size(tmp_path: Path, width: int, height: int, matrix: str) -> None:
    gray = [np.full((height, width), 100, np.uint8)] * 3
    info, _ = read_all(encode(tmp_path / "a.mkv", [frame_of_planes(gray, "yuv444p")]))
    assert info.color == Color(matrix, False, 2, 2)


def test_untagged_yuvj_is_full_range(tmp_path: Path) -> None:
    levels = [np.full((48, 64), 255, np.uint8), np.full((24, 32), 128, np.uint8), np.full((24, 32), 128, np.uint8)]
    info, pictures = read_all(encode(tmp_path / "a.avi", [frame_of_planes(levels, "yuvj420p")], codec="mjpeg"))
    assert info.color.full_range
    assert pictures.min() >= 253


def test_an_unsupported_matrix_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv444p"
        stream.codec_context.colorspace = 8
        frame = av.VideoFrame(32, 32, "yuv444p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ClipError, match=r"a\.mkv: color matrix 8 .* convert"):
        open_clip(path)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_lossless_copy_of_what_was_decoded_is_exact(tmp_path: Path, matrix: str, full_range: bool, suffix: str) -> None:
    frames = rgb_frames(smooth_pictures(5, 48, 62), "yuv420p")
    source = encode(tmp_path / "a.mp4", frames, codec="libx264", matrix=matrix, full_range=full_range)
    info, pictures = read_all(source)
    assert (info.color.matrix, info.color.full_range) == (matrix, full_range)
    copy = tmp_path / f"b{suffix}"
    with create_clip(copy, width=62, height=48, fps=info.fps, color=info.color, lossless=True) as writer:
        writer.write(pictures)
    assert (read_all(copy)[1] == pictures).all()


@pytest.mark.parametrize(
    "color", [Color("bt601", False, 5, 6), Color("bt709", True, 1, 1), Color("bt2020", False, 9, 14)]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_written_samples_and_tags_are_those_asked_for(tmp_path: Path, color: Color, suffix: str) -> None:
    pictures = smooth_pictures(2, 47, 61)  # odd, hence with whole chroma
    path = tmp_path / f"a{suffix}"
    with create_clip(path, width=61, height=47, fps=Fraction(25), color=color) as writer:
        writer.write(pictures)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        context = stream.codec_context
        assert (frame.colorspace, frame.color_range) == (color.matrix_code, color.range_code)
        assert (context.color_primaries, context.color_trc) == (color.primaries, color.transfer)
        stored = planes_of_frame(frame)
    for plane, wanted in zip(stored, yuv_from_rgb(pictures[0] / 255, color.matrix, color.full_range, 8), strict=True):
        assert psnr(plane, wanted) > 40
    info, back = read_all(path)
    assert info.color == color
    assert psnr(back, pictures) > 38


def test_pictures_are_stored_as_bt709(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with create_clip(path, width=64, height=48, fps=Fraction(25), color=Color("rgb", True)) as writer:
        writer.write(smooth_pictures(2, 48, 64))
    assert read_all(path)[0].color == Color("bt709", False, 1, 1)


@pytest.mark.parametrize("rotation", [0, 90])
def test_pictures_scaled_while_converted_are_those_scaled_after(tmp_path: Path, rotation: int) -> None:
    rgb = smooth_pictures(3, 48, 96)[0] / 255
    planes = yuv_from_rgb(rgb, "bt709", False, 8)
    frames = [frame_of_planes(planes, "yuv444p") for _ in range(2)]
    path = encode(tmp_path / "a.mp4", frames, matrix="bt709", rotation=rotation)
    _, whole = read_all(path)
    height, width = whole.shape[1:3]
    assert (height, width) == ((96, 48) if rotation else (48, 96))
    with open_clip(path, size=(width // 3, height // 2)) as clip:
        scaled = next(clip.chunks(1))[0]
    assert scaled.shape == (height // 2, width // 3, 3)
    after = Resizer(width // 3, height // 2)(np.ascontiguousarray(whole[0]))
    assert np.abs(scaled.astype(int) - after).mean() < 1


def test_eight_bits_of_sixteen_bits_are_rounded() -> None:
    deep = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(eight_bits(deep), np.rint(deep / 257).astype(np.uint8))
    assert np.array_equal(eight_bits(eight_bits(deep)), eight_bits(deep))


@pytest.mark.parametrize(("kind", "channels"), [("Pf", 1), ("PF", 3)])
def test_floating_point_samples_are_refused(tmp_path: Path, kind: str, channels: int) -> None:
    ramp = np.linspace(0, 1, 16 * 16 * channels, dtype="<f4")
    (tmp_path / "a.pfm").write_bytes(f"{kind}\n16 16\n-1.0\n".encode() + ramp.tobytes())
    with pytest.raises(ClipError, match="floating-point numbers, of which nothing says what is white"):
        read_all(tmp_path / "a.pfm")
