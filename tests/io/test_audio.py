"""Audio is carried over packet by packet and stays with its pictures."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.io.sources import encode, rgb_frames, smooth_pictures
from wan_vae.io import AudioSource, Color, create_clip, open_clip

Frames = tuple[int | None, int | None]

PICTURES = smooth_pictures(50, 32, 32)
RATE = Fraction(25)


@pytest.fixture(scope="module", params=[(".mp4", "aac"), (".mkv", "aac"), (".webm", "libopus"), (".mov", "pcm_s16le")])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, every picture and every packet of audio with a time of its own."""
    suffix, audio_codec = request.param
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    path = tmp_path_factory.mktemp("audio") / f"a{suffix}"
    return encode(
        path, rgb_frames(PICTURES, "yuv420p"), codec=codec, audio_codec=audio_codec, options={"cpu-used": "8"}
    )


def packets(path: Path) -> list[tuple[Fraction, bytes]]:
    """Seconds after the first picture, and contents, of every packet of audio."""
    with av.open(str(path)) as container:
        first = min((p.pts or 0) * p.time_base for p in container.demux(container.streams.video[0]) if p.size)
    with av.open(str(path)) as container:
        audio = [p for p in container.demux(container.streams.audio[0]) if p.size]
        return [((p.pts or 0) * p.time_base - first, bytes(p)) for p in audio]


def copy(
    source: Path, target: Path, frames: Frames = (None, None), count: int | None = None, fps: int | None = None
) -> None:
    with open_clip(source, frames=frames, fps=fps) as clip:
        info = clip.info
        with create_clip(
            target, width=info.width, height=info.height, fps=info.fps, color=info.color, audio=clip.audio
        ) as writer:
            for chunk in clip.chunks(50):
                writer.write(chunk[:count])


@pytest.mark.parametrize("frames", [(None, None), (10, 40), (None, 20), (33, None)])
@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".mp4"])
def test_packets_are_copied_and_stay_in_time(tmp_path: Path, source: Path, frames: Frames, suffix: str) -> None:
    target = tmp_path / f"b{suffix}"
    if source.suffix == ".webm" and suffix == ".mov":
        pytest.skip("MOV holds no Opus")
    copy(source, target, frames)
    first, stop = frames[0] or 0, frames[1] or 50
    before, after = packets(source), packets(target)
    start, length = first / RATE, (stop - first) / RATE
    times = {content: time for time, content in before}
    if source.suffix != ".mov":  # PCM is cut into other packets by each container
        for time, content in after:
            assert abs(times[content] - start - time) <= Fraction(2, 1000)
    assert after[0][0] <= Fraction(1, 10)
    assert length - Fraction(1, 10) <= after[-1][0] <= length
    with open_clip(target) as clip:
        assert clip.info.frames == stop - first
        assert clip.info.fps == RATE
        assert clip.info.has_audio


def test_audio_of_a_resampled_selection_is_that_of_its_time(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", rgb_frames(PICTURES, "yuv420p"), codec="libx264", audio_codec="aac")
    with open_clip(path, frames=(8, 17), fps=10) as clip:
        assert clip.audio is not None
        begin = clip.audio.start - Fraction(8, 10)
        assert clip.audio.stop == begin + Fraction(17, 10)
        assert abs(begin) <= Fraction(2, 1000)
    copy(path, tmp_path / "b.mkv", (8, 17), fps=10)
    assert Fraction(8, 10) <= packets(tmp_path / "b.mkv")[-1][0] <= Fraction(9, 10)


def test_sound_whose_times_go_back_is_left_out_until_they_are_beyond(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = encode(tmp_path / "one.ts", rgb_frames(PICTURES, "yuv420p"), codec="mpeg2video", audio_codec="mp2")
    (tmp_path / "two.ts").write_bytes(one.read_bytes() * 2)
    copy(tmp_path / "two.ts", tmp_path / "b.mkv")
    assert sum("go back at" in message for message in caplog.messages) == 1
    audio = packets(tmp_path / "b.mkv")
    assert [content for _, content in audio] == [content for _, content in packets(one)]
    assert open_clip(tmp_path / "b.mkv").info.frames == 100


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_of_a_transport_stream_is_brought_to_the_form_of_its_container(tmp_path: Path, suffix: str) -> None:
    source = encode(tmp_path / "a.ts", rgb_frames(PICTURES, "yuv420p"), codec="libx264", audio_codec="aac")
    copy(source, tmp_path / f"b{suffix}")
    with av.open(str(tmp_path / f"b{suffix}")) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        assert samples > 0.9 * 50 / RATE * container.streams.audio[0].rate


def test_audio_ends_with_the_last_frame(tmp_path: Path, source: Path) -> None:
    copy(source, tmp_path / "b.mkv", count=17)
    assert packets(tmp_path / "b.mkv")[-1][0] < 17 / RATE


@pytest.mark.parametrize(("suffix", "reason"), [(".webm", "cannot hold aac audio"), (".gif", "cannot hold audio")])
def test_audio_that_the_format_cannot_store_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, reason: str
) -> None:
    path = encode(tmp_path / "a.mp4", rgb_frames(PICTURES, "yuv420p"), codec="libx264", audio_codec="aac")
    copy(path, tmp_path / f"b{suffix}")
    assert [record.message for record in caplog.records if reason in record.message]
    with open_clip(tmp_path / f"b{suffix}") as clip:
        assert not clip.info.has_audio
        assert clip.info.frames == 50


def test_audio_source_without_audio_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = encode(tmp_path / "a.mkv", rgb_frames(PICTURES[:3]))
    with open_clip(silent) as clip:
        assert clip.audio is None
    audio = AudioSource(silent)
    with create_clip(
        tmp_path / "b.mkv", width=32, height=32, fps=RATE, color=Color("rgb", True), audio=audio
    ) as writer:
        writer.write(np.asarray(PICTURES[:3]))
    assert "has no audio" in caplog.text
