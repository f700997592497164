"""Damaged, cut, joined and mislabelled videos: all frames, or a notice of those left out, or one sentence."""

import os
import random
import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.io.sources import encode, rgb_frames, smooth_pictures
from wan_vae.errors import ClipError
from wan_vae.io import ClipInfo, mp4, open_clip
from wan_vae.io.containers import read_structure

PICTURES = smooth_pictures(20, 48, 64)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("damage")
    yuv = rgb_frames(PICTURES, "yuv420p")
    fast = {"cpu-used": "8"}
    fragments = {"movflags": "+frag_keyframe+empty_moov"}
    made = {
        "mjpeg.avi": encode(folder / "1.avi", rgb_frames(PICTURES, "yuvj420p"), codec="mjpeg"),
        "mpeg4.avi": encode(folder / "2.avi", yuv, codec="mpeg4"),
        "h264.avi": encode(folder / "3.avi", yuv, codec="libx264"),
        "raw.avi": encode(folder / "4.avi", rgb_frames(PICTURES[:, :16, :16], "bgr24"), codec="rawvideo"),
        "vp8.webm": encode(folder / "1.webm", yuv, codec="libvpx", options=fast),
        "vp9.webm": encode(folder / "2.webm", yuv, codec="libvpx-vp9", options=fast),
        "h264.mkv": encode(folder / "1.mkv", yuv, codec="libx264", metadata={"title": "Cafe"}),
        "live.mkv": encode(folder / "2.mkv", yuv, codec="libx264", container_options={"live": "1"}),
        "h264.mp4": encode(folder / "1.mp4", yuv, codec="libx264"),
        "frag.mp4": encode(folder / "2.mp4", yuv, codec="libx264", options={"g": "5"}, container_options=fragments),
        "audio.mov": encode(folder / "1.mov", yuv, codec="libx264", audio_codec="pcm_s16le"),
        "h264.ts": encode(folder / "1.ts", yuv, codec="libx264", options={"g": "10"}),
        "h264.vob": encode(folder / "1.vob", yuv, codec="mpeg2video"),
    }
    return {name: path.read_bytes() for name, path in made.items()}


def stored(folder: Path, name: str, data: bytes) -> Path:
    path = folder / f"a.{name.split('.')[1]}"
    path.write_bytes(data)
    return path


def read(path: Path, **options: Any) -> tuple[ClipInfo, int]:
    with open_clip(path, **options) as clip:
        return clip.info, sum(len(chunk) for chunk in clip.chunks(8))


def patched(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    place = data.index(mark) + offset
    return data[:place] + new + data[place + len(new) :]


STRUCTURED = [
    "mjpeg.avi",
    "mpeg4.avi",
    "h264.avi",
    "raw.avi",
    "vp9.webm",
    "h264.mkv",
    "live.mkv",
    "h264.mp4",
    "frag.mp4",
]


@pytest.mark.parametrize("name", STRUCTURED)
def test_read_after_one_flipped_bit_gives_all_frames_or_is_refused(
    tmp_path: Path, clips: dict[str, bytes], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    draw = random.Random(name)
    for _ in range(25):
        data = bytearray(clips[name])
        place, bit = draw.randrange(len(data)), draw.randrange(8)
        data[place] ^= 1 << bit
        caplog.clear()
        try:
            info, count = read(stored(tmp_path, name, bytes(data)))
        except ClipError:
            continue
        assert (info.frames, count) == (20, 20) or "left out" in caplog.text, f"bit {bit} of byte {place}"


@pytest.mark.parametrize(
    ("name", "mark", "offset", "new"),
    [
        ("mjpeg.avi", b"00dc", 0, b"XX"),
        ("mpeg4.avi", b"00dc", 4, b"\x07"),
        ("vp9.webm", rb"\xa3(?:[\x81-\xff]|[\x40-\x7f].)\x81", 0, b"\xa7"),
        ("h264.mkv", b"\x1f\x43\xb6\x75", 1, b"\x53"),
        ("frag.mp4", b"traf", 0, b"trag"),
        ("frag.mp4", b"moof", 0, b"moog"),
        ("frag.mp4", b"trun", 7, b"\x00"),
        ("h264.mp4", b"elst", 12, b"\x00\x00\x00\x10"),
    ],
)
def test_read_of_a_file_with_frames_that_ffmpeg_skips_is_refused(
    tmp_path: Path, clips: dict[str, bytes], name: str, mark: bytes, offset: int, new: bytes
) -> None:
    data = clips[name]
    # The last one, but not in the index of AVI or the random access table of fragments.
    end = data.index(b"idx1") if name.endswith("avi") else len(data)
    place = [match.start() for match in re.finditer(mark, data[:end], re.DOTALL)][-1] + offset
    data = data[:place] + new + data[place + len(new) :]
    with pytest.raises(ClipError, match=r"is damaged|cannot be read"):
        read(stored(tmp_path, name, data))


@pytest.mark.parametrize("tail", [b"\n", bytes(1000), b"TAG" + b" " * 125, b"\0\0\1\0free1234", b"\xff" * 300])
@pytest.mark.parametrize("name", ["h264.mp4", "frag.mp4", "audio.mov", "h264.mkv", "live.mkv", "mpeg4.avi"])
def test_read_with_trailing_bytes_gives_all_frames(
    tmp_path: Path, clips: dict[str, bytes], caplog: pytest.LogCaptureFixture, name: str, tail: bytes
) -> None:
    info, count = read(stored(tmp_path, name, clips[name] + tail))
    assert (info.frames, count, info.fps) == (20, 20, 25)
    assert len(caplog.records) <= 1


def headers_that_lie(clips: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    mkv, avi = clips["h264.mkv"], clips["mpeg4.avi"]
    yield "longer.mkv", patched(mkv, b"\x44\x89\x88", 3, struct.pack(">d", 12000.0))
    yield "endless.mkv", patched(mkv, b"\x44\x89\x88", 3, struct.pack(">d", 1e18))
    yield "without-cues.mkv", mkv[:-15]
    # As written to a pipe: no length of the file, and a guess of the number of frames.
    yield "pipe.avi", patched(patched(avi, b"RIFF", 4, b"\xff" * 4), b"vids", 32, struct.pack("<I", 3749))
    yield "recording.avi", patched(avi[: avi.index(b"idx1")], b"RIFF", 4, bytes(4))
    yield "without-index.avi", avi[: avi.index(b"idx1")]


def test_read_with_headers_that_declare_too_much_gives_all_frames(
    tmp_path: Path, clips: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for name, data in headers_that_lie(clips):
        caplog.clear()
        info, count = read(stored(tmp_path, name, data))
        assert (info.frames, count, info.fps) == (20, 20, 25), name
        assert len(caplog.records) <= 1, name


def test_read_of_avi_that_repeats_its_last_frame_gives_the_frames_before(
    tmp_path: Path, clips: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    avi = clips["mpeg4.avi"]
    start = avi.index(b"idx1")
    index = bytearray(avi[start : start + 8 + 20 * 16])
    chunks = [struct.unpack_from("<4sIII", index, 8 + 16 * number) for number in range(20)]
    movi = avi.index(b"movi")
    # The last four chunks become empty.
    place = movi + chunks[16][2]
    for number in range(16, 20):
        struct.pack_into("<4sIII", index, 8 + 16 * number, b"00dc", 0, place - movi + 8 * (number - 16), 0)
    body = avi[:place] + (b"00dc" + bytes(4)) * 4
    data = body[: movi - 4] + struct.pack("<I", len(body) - movi) + body[movi:] + bytes(index)
    info, count = read(stored(tmp_path, "a.avi", patched(data, b"RIFF", 4, struct.pack("<I", len(data) - 8))))
    assert (info.frames, count) == (16, 16)
    assert len(caplog.records) <= 1


def cut_at_keyframe(source: Path, target: Path) -> Path:
    """Copy the packets from the second keyframe on, as cutting without encoding does."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = container.streams.video[0]
        copy = output.add_stream_from_template(stream)
        keyframes, first = 0, None
        for packet in container.demux(stream):
            keyframes += packet.is_keyframe
            if keyframes > 1 and packet.size and packet.dts is not None:
                first = packet.dts if first is None else first
                packet.pts, packet.dts = packet.pts - first, packet.dts - first
                packet.stream = copy
                output.mux(packet)
    return target


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", ".mkv"), ("libx264", ".mp4"), ("mpeg2video", ".mkv"), ("mpeg2video", ".mp4"), ("mpeg2video", ".ts")],
)
def test_read_of_a_clip_cut_at_an_open_group_says_what_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: str
) -> None:
    options = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0:b-adapt=0"}
    if codec == "mpeg2video":
        options = {"bf": "2", "g": "12"}
    frames = rgb_frames(smooth_pictures(40, 48, 64), "yuv420p")
    whole = encode(tmp_path / "a.mkv", frames, codec=codec, options=options)
    path = cut_at_keyframe(whole, tmp_path / f"b{suffix}")
    with av.open(str(path)) as container:
        shown = sum(1 for _ in container.decode(video=0))
    info, count = read(path)
    assert 20 < count < 29
    assert info.frames == count == shown
    assert not info.variable_frame_rate
    assert len([r for r in caplog.records if "left out" in r.message]) == len(caplog.records) == 1


def test_read_of_a_recording_cut_anywhere_begins_with_its_first_keyframe(
    tmp_path: Path, clips: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    data = clips["h264.ts"]
    info, count = read(stored(tmp_path, "a.ts", data[len(data) // 3 // 188 * 188 :]))
    assert (info.frames, count, info.fps) == (10, 10, 25)
    assert len([r for r in caplog.records if "was cut" in r.message]) == len(caplog.records) == 1


@pytest.mark.parametrize("name", ["h264.ts", "h264.vob", "h264.mkv"])
def test_read_of_joined_files_continues_the_time(
    tmp_path: Path, clips: dict[str, bytes], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = stored(tmp_path, name, clips[name] * 2)
    info, count = read(path)
    assert (info.frames, count, info.fps, info.variable_frame_rate) == (40, 40, 25, False)
    assert not caplog.records
    _, count = read(path, fps=Fraction(50))
    assert count == 80


def test_read_of_packets_lost_in_a_transport_stream_is_refused(tmp_path: Path, clips: dict[str, bytes]) -> None:
    data = clips["h264.ts"]
    middle = len(data) // 2 // 188 * 188
    with pytest.raises(ClipError, match="is damaged"):
        read(stored(tmp_path, "a.ts", data[:middle] + data[middle + 3 * 188 :]))


def two_streams(path: Path, default: int) -> Path:
    """A small stream and a large one, of which one is marked as the default."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        for index, side in enumerate((32, 64)):
            stream: Any = container.add_stream("ffv1", rate=25)
            stream.width = stream.height = side
            stream.pix_fmt = "bgr0"
            stream.disposition = av.stream.Disposition.default.value if index == default else 0
            streams.append(stream)
        for stream in streams:
            for number in range(3):
                frame = av.VideoFrame(stream.width, stream.height, "bgr0")
                for plane in frame.planes:
                    plane.update(bytes(plane.buffer_size))
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("default", "side"), [(0, 32), (1, 64), (-1, 64)])
def test_open_clip_with_two_video_streams_reads_the_one_that_players_show(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, default: int, side: int
) -> None:
    info, count = read(two_streams(tmp_path / "a.mkv", default))
    assert (info.width, info.height, info.frames, count) == (side, side, 3, 3)
    assert len(caplog.records) == 1
    assert "has 2 video streams" in caplog.text


def test_open_clip_without_a_decoder_is_refused(tmp_path: Path, clips: dict[str, bytes]) -> None:
    with pytest.raises(ClipError, match="no decoder"):
        open_clip(stored(tmp_path, "a.mp4", clips["h264.mp4"].replace(b"avc1", b"zzz1")))


def test_open_clip_with_metadata_in_another_encoding_succeeds(tmp_path: Path, clips: dict[str, bytes]) -> None:
    data = clips["h264.mkv"]
    assert b"Cafe" in data
    assert read(stored(tmp_path, "a.mkv", data.replace(b"Cafe", b"Caf\xe9")))[1] == 20


@pytest.mark.parametrize(
    ("name", "mark", "offset", "new", "message"),
    [
        ("raw.avi", b"strf", 12, struct.pack("<II", 20000, 16), "declares pictures of 20000x16"),
        ("raw.avi", b"strf", 12, struct.pack("<II", 10**9, 10**9), "is damaged"),
        ("h264.mp4", b"stsz", 12, struct.pack(">I", 2**32 - 1), "is damaged|cannot be read"),
        ("h264.mp4", b"stts", 16, struct.pack(">I", 2**31 - 1), "is damaged"),
    ],
)
def test_open_clip_with_impossible_numbers_is_refused(
    tmp_path: Path, clips: dict[str, bytes], name: str, mark: bytes, offset: int, new: bytes, message: str
) -> None:
    with pytest.raises(ClipError, match=message):
        open_clip(stored(tmp_path, name, patched(clips[name], mark, offset, new)))


def test_structure_of_many_boxes_takes_time_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def box(kind: bytes, content: bytes = b"") -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    walked: list[int] = []
    boxes = mp4._boxes
    monkeypatch.setattr(mp4, "_boxes", lambda content: walked.append(len(content)) or boxes(content))
    media = box(b"mdia", box(b"minf", box(b"stbl", box(b"free") * 1000)))
    track = box(b"trak", media + box(b"edts") * 1000)
    read_structure(stored(tmp_path, "a.mp4", box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", track)))
    assert sum(walked) < 10 * len(track)


def test_avi_of_lists_in_lists_is_refused_with_a_sentence(tmp_path: Path) -> None:
    lists = b""
    for _ in range(3000):
        lists = b"LIST" + struct.pack("<I", 4 + len(lists)) + b"rec " + lists
    data = b"RIFF" + struct.pack("<I", 4 + len(lists)) + b"AVI " + lists
    with pytest.raises(ClipError, match=r"a\.avi"):
        open_clip(stored(tmp_path, "a.avi", data))


@pytest.mark.parametrize("change", ["truncate", "replace", "delete"])
def test_reading_a_file_that_changes_is_refused(tmp_path: Path, clips: dict[str, bytes], change: str) -> None:
    path = stored(tmp_path, "a.mkv", clips["h264.mkv"])
    with open_clip(path) as clip:
        chunks = clip.chunks(2)
        next(chunks)
        if change == "truncate":
            os.truncate(path, len(clips["h264.mkv"]) - 20)
        elif change == "replace":
            (tmp_path / "b.mkv").write_bytes(clips["h264.mkv"])
            (tmp_path / "b.mkv").replace(path)
        else:
            path.unlink()
        with pytest.raises(ClipError, match="changed while it was read"):
            list(chunks)


def test_open_clip_of_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero")):
        with pytest.raises(ClipError, match="neither a file nor a folder"):
            open_clip(path)
    with pytest.raises(ClipError, match="standard input cannot be read"):
        open_clip("-")
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(ClipError, match="cannot be opened"):
            open_clip(tmp_path / name)


def test_left_out_names_what_is_neither_picture_nor_first_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "bgr0"
        tracks: list[Any] = [container.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(2)]
        for audio in tracks:
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            heard.sample_rate, heard.pts = 8000, 0
            container.mux(audio.encode(heard))
        for frame in rgb_frames(smooth_pictures(2, 32, 32)):
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    with open_clip(path) as clip:
        assert clip.left_out == ("further audio tracks",)


def test_left_out_names_chapters(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video: Any = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "bgr0"
        container.set_chapters([{"id": 1, "start": 0, "end": 1, "time_base": Fraction(1, 25), "metadata": {}}])
        for frame in [*rgb_frames(smooth_pictures(2, 32, 32)), None]:
            container.mux(video.encode(frame))
    with open_clip(tmp_path / "a.mkv") as clip:
        assert clip.left_out == ("chapters",)
