from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.io.field_coding import gray_planes, write_fields
from tests.io.sources import Array, encode, read_all, rgb_frames, smooth_pictures
from wan_vae.errors import ClipError


def _gray_pictures(count: int) -> Array:
    """Of luma, on a slope that tells rows and columns apart; each differs from the one before."""
    rows, columns = np.mgrid[:64, :48]
    return np.stack([30 + rows + columns + 2 * (number % 40) for number in range(count)]).astype(np.uint8)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("extension", ["ts", "mp4", "mkv", "h264"])
def test_frames_of_two_fields_are_read_at_the_rate_of_frames(
    tmp_path: Path, extension: str, apart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = _gray_pictures(12)
    path = write_fields(tmp_path / f"a.{extension}", gray_planes(pictures), 25, apart=range(12) if apart else ())
    info, back = read_all(path)
    assert (info.frames, info.fps, info.variable_frame_rate) == (12, 25, False)
    expected = (pictures.astype(float) - 16) / 219 * 255
    assert abs(back[..., 1].astype(float) - expected).max() <= 1
    assert not caplog.records


def test_selection_of_a_clip_of_fields_counts_frames(tmp_path: Path) -> None:
    path = write_fields(tmp_path / "a.ts", gray_planes(_gray_pictures(12)), 25, apart=range(12))
    whole = read_all(path)[1]
    info, some = read_all(path, frames=(5, 9))
    assert (info.frames, info.fps) == (4, 25)
    np.testing.assert_array_equal(some, whole[5:9])


@pytest.mark.parametrize("apart", [range(150), range(130, 150), range(0, 150, 5)], ids=["all", "the last", "every 5th"])
def test_clip_of_some_frames_in_fields_is_read_to_its_end(tmp_path: Path, apart: range) -> None:
    path = write_fields(tmp_path / "a.mp4", gray_planes(_gray_pictures(150)), 25, apart=apart)
    info, _ = read_all(path)
    assert (info.frames, info.fps, info.variable_frame_rate) == (150, 25, False)


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts"])
def test_interlaced_clip_without_fields_apart_is_read_to_its_end(tmp_path: Path, extension: str) -> None:
    frames = rgb_frames(smooth_pictures(150, 32, 32), "yuv420p")
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    info, _ = read_all(encode(tmp_path / f"a.{extension}", frames, codec="libx264", options=options))
    assert (info.frames, info.fps) == (150, 25)


def _packet_starts(data: bytes) -> list[int]:
    """Where the packets of the video of an MPEG transport stream begin (ISO/IEC 13818-1, 2.4.3.2)."""
    packets = range(0, len(data), 188)
    return [at for at in packets if data[at + 1] & 0x40 and (data[at + 1] & 31) << 8 | data[at + 2] == 256]


def test_joined_clips_of_fields_are_read_as_one(tmp_path: Path) -> None:
    data = write_fields(tmp_path / "a.ts", gray_planes(_gray_pictures(12)), 25, apart=range(12), group=6).read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(data + data[_packet_starts(data)[12] :])
    info, _ = read_all(joined)
    assert (info.frames, info.fps, info.variable_frame_rate) == (18, 25, False)


def test_clip_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    data = write_fields(tmp_path / "a.ts", gray_planes(_gray_pictures(12)), 25, apart=range(12)).read_bytes()
    starts = _packet_starts(data)
    (tmp_path / "a.ts").write_bytes(data[: starts[10]] + data[starts[11] :])
    with pytest.raises(ClipError, match="is damaged"):
        read_all(tmp_path / "a.ts")


def _leave_out(path: Path, source: Path, numbers: set[int]) -> Path:
    """Replace frames of MPEG-4 with ones that say that nothing changed (ISO 14496-2, 6.2.5: vop_coded is 0)."""
    with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for number, packet in enumerate(packet for packet in reader.demux() if packet.size):
            if number in numbers:
                # Predicted, in the same second, a marker, 5 bits of the time at 25 frames a second, a marker, no data.
                bits = f"0101{number:05b}100"
                bits += "1" * (-len(bits) % 8)
                empty = av.Packet(b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big"))
                empty.pts, empty.dts, empty.time_base, empty.duration = number, number, Fraction(1, 25), 1
                packet = empty
            packet.stream = stream
            writer.mux(packet)
    return path


@pytest.mark.parametrize("extension", ["avi", "mkv", "mp4"])
def test_frames_of_mpeg4_without_content_lengthen_those_before(tmp_path: Path, extension: str) -> None:
    pictures = smooth_pictures(24, 64, 96)
    source = encode(tmp_path / "source.avi", rgb_frames(pictures, "yuv420p"), codec="mpeg4", options={"b": "4M"})
    path = _leave_out(tmp_path / f"a.{extension}", source, {7, 8, 23})
    info, back = read_all(path)
    assert (info.frames, info.variable_frame_rate) == (22, True)  # FFmpeg shows the last picture again
    even, repeated = read_all(path, fps=Fraction(25))
    assert (even.frames, even.fps) == (24, 25)
    np.testing.assert_array_equal(repeated[6], repeated[8])
    np.testing.assert_array_equal(repeated[9:], back[7:])
    np.testing.assert_array_equal(repeated[23], repeated[22])
