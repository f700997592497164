"""Streams whose frames change midway, and alpha channels that are none."""

import gc
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.bitstream
import numpy as np
import pytest

from tests.io.sources import (
    MATRIX_CODES,
    Array,
    encode,
    frame_of_planes,
    read_all,
    rgb_from_yuv,
    smooth_pictures,
    yuv_from_rgb,
)
from wan_vae.io import open_clip

RGB = smooth_pictures(4, 48, 64) / 255


class Part:
    """Some H.264 frames of one kind, and the pictures that they stand for."""

    def __init__(
        self,
        rgb: Array = RGB,
        matrix: str = "bt601",
        full_range: bool = False,
        bits: int = 8,
        rotation: int = 0,
    ) -> None:
        planes = [yuv_from_rgb(picture, matrix, full_range, bits) for picture in rgb]
        layout = "yuv444p" if bits == 8 else f"yuv444p{bits}le"
        self.frames = [frame_of_planes(stored, layout) for stored in planes]
        self.tags = {"colorspace": MATRIX_CODES[matrix], "color_range": 2 if full_range else 1}
        self.rotation = rotation
        self.pictures = np.stack([rgb_from_yuv(stored, matrix, full_range, bits) for stored in planes])
        self.pictures = np.rot90(self.pictures, rotation // 90, (1, 2))


def joined(path: Path, parts: Sequence[Part]) -> Path:
    """Write parts one after the other in one stream of a transport stream."""
    number = 0
    with av.open(str(path), "w") as container:
        stream: Any = None
        for part in parts:
            context: Any = av.CodecContext.create("libx264", "w")
            first = part.frames[0]
            context.width, context.height, context.pix_fmt = first.width, first.height, first.format.name
            context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
            context.options = {"qp": "0", "bf": "0", "rc-lookahead": "0"}
            for name, value in part.tags.items():
                setattr(context, name, value)
            packets = []
            for frame in part.frames:
                frame.pts, frame.time_base = number, Fraction(1, 25)
                number += 1
                packets += context.encode(frame)
            packets += context.encode(None)
            if stream is None:
                stream = container.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
            if part.rotation:
                name = f"h264_metadata=display_orientation=insert:rotate={part.rotation}"
                turned = av.bitstream.BitStreamFilterContext(name, stream)
                packets = [packet for given in [*packets, None] for packet in turned.filter(given)]
            for packet in packets:
                packet.stream = stream
                container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (Part(matrix="bt709"), "matrix from 6 to 1"),
        (Part(full_range=True), "range from 1 to 2"),
        (Part(bits=10), "format from yuv444p to yuv444p10le"),
        (Part(rotation=90), "rotation from 0 to 90"),
        (Part(rotation=180, matrix="bt709"), "matrix from 6 to 1, rotation from 0 to -180"),
        (Part(smooth_pictures(4, 96, 128) / 255), "width from 64 to 128, height from 48 to 96"),
    ],
    ids=["matrix", "range", "depth", "quarter turn", "half turn", "size"],
)
@pytest.mark.parametrize("order", ["plain first", "plain last"])
def test_frames_that_change_midway_are_converted_as_they_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, second: Part, told: str, order: str
) -> None:
    parts = [Part(), second] if order == "plain first" else [second, Part()]
    info, pictures = read_all(joined(tmp_path / "a.ts", parts))
    assert info.frames == len(pictures) == 8
    height, width = parts[0].pictures.shape[1:3]
    assert (info.height, info.width) == (height, width)
    top = np.iinfo(pictures.dtype).max
    assert top == (65535 if info.bit_depth > 8 else 255)
    for part, read in zip(parts, (pictures[:4], pictures[4:]), strict=True):
        wanted = part.pictures
        if wanted.shape[1:3] == (height, width):
            assert np.abs(read / top - wanted).max() < 0.009
        else:  # of smooth pictures, points far from the edges stay
            rows, columns = (np.linspace(0.2, 0.8, 9)[:, None] * np.ones(9), np.linspace(0.2, 0.8, 9) * np.ones((9, 1)))
            there, here = (
                clip[:, (rows * clip.shape[1]).astype(int), (columns * clip.shape[2]).astype(int)]
                for clip in (wanted, read / top)
            )
            assert np.abs(there - here).max() < 0.05
    messages = [record.message for record in caplog.records if "changes at frame 4" in record.message]
    assert len(messages) == 1
    if order == "plain first":
        assert told in messages[0]


def test_a_change_is_told_once_and_counted_from_the_start_of_the_clip(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = joined(tmp_path / "a.ts", [Part(), Part(matrix="bt709"), Part(), Part(full_range=True)])
    with open_clip(path, frames=(2, 16)) as clip:
        assert sum(len(chunk) for chunk in clip.chunks(3)) == 14
        assert sum(len(chunk) for chunk in clip.chunks(3)) == 14
    assert [record.message.split(":")[0] for record in caplog.records if "changes" in record.message] == [
        f"{path} changes at frame 4 (numbered from 0)"
    ]
    caplog.clear()
    read_all(path, frames=(4, 8))
    assert not [record for record in caplog.records if "changes" in record.message]


def test_rotated_frames_are_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    path = joined(tmp_path / "a.ts", [Part(), *(Part(rotation=90) for _ in range(8))])

    def frames_held() -> int:
        return sum(type(thing) is av.VideoFrame for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = frames_held()
        with open_clip(path) as clip:
            for _ in clip.chunks(4):
                pass
        assert frames_held() - before <= 5
    finally:
        gc.enable()


def raw(path: Path, alphas: Sequence[int], codec: str = "rawvideo") -> Path:
    """Write BGRA frames, each with one value in its fourth byte."""
    frames = []
    for picture, alpha in zip(smooth_pictures(len(alphas), 48, 64), alphas, strict=True):
        stored = np.dstack([picture[..., ::-1], np.full(picture.shape[:2], alpha, np.uint8)])
        frames.append(av.VideoFrame.from_ndarray(stored, "bgra"))
    return encode(path, frames, codec=codec)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "rawvideo"), ("a.avi", "huffyuv"), ("a.nut", "rawvideo")])
def test_a_fourth_byte_of_zeros_is_no_alpha(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, codec: str
) -> None:
    info, pictures = read_all(raw(tmp_path / name, [0, 0, 0], codec))
    assert not info.has_alpha
    assert (pictures == smooth_pictures(3, 48, 64)).all()
    assert not caplog.records
    read_all(tmp_path / name, frames=(1, 2))


@pytest.mark.parametrize(
    ("name", "codec", "alphas"),
    [("a.avi", "rawvideo", [128, 0]), ("a.mkv", "ffv1", [0, 0]), ("a.mov", "qtrle", [0, 9])],
)
def test_alpha_that_is_used_or_declared_stays_alpha(
    tmp_path: Path, name: str, codec: str, alphas: Sequence[int]
) -> None:
    if codec == "qtrle":
        frames = [av.VideoFrame.from_ndarray(np.full((48, 64, 4), alpha, np.uint8), "argb") for alpha in alphas]
        path = encode(tmp_path / name, frames, codec=codec)
    else:
        path = raw(tmp_path / name, alphas, codec)
    info, pictures = read_all(path)
    assert info.has_alpha
    assert all((pictures[n] == 0).all() for n, alpha in enumerate(alphas) if alpha == 0)
