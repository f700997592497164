"""Frame rates from timestamps, and rates that are given."""

import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.io.sources import encode, read_all, rgb_frames, smooth_pictures
from wan_vae.errors import ClipError
from wan_vae.io.timing import FASTEST, SLOWEST, Timing, exact_rate, measure

MS = Fraction(1, 1000)
FINE = Fraction(1, 16000)  # of MP4 files that FFmpeg makes of Matroska files
RATES = [Fraction(n) for n in (16, 24, 25, 30, 50, 60, 120)] + [Fraction(n * 1000, 1001) for n in (24, 30, 60)]
PICTURES = smooth_pictures(40, 48, 64)


def timing(
    times: Iterable[Fraction], tick: Fraction, rates: Iterable[Fraction] = (), last: Fraction = Fraction(0)
) -> Timing:
    return measure([(time, last) for time in times], tick=tick, rates=rates, frames=(None, None))


def rounded(time: Fraction, tick: Fraction) -> Fraction:
    return math.floor(time / tick + Fraction(1, 2)) * tick


@given(
    rate=st.sampled_from(RATES),
    count=st.integers(4, 300),
    tick=st.sampled_from([MS, FINE, Fraction(1, 90000), Fraction(1, 12800)]),
    start=st.fractions(0, 100, max_denominator=90000),
    declared=st.booleans(),
)
def test_measure_of_times_that_an_earlier_container_rounded_finds_the_constant_rate(
    rate: Fraction, count: int, tick: Fraction, start: Fraction, declared: bool
) -> None:
    times = [rounded(rounded(start + n / rate, MS), tick) for n in range(count)]
    found = timing(times, tick, [count / (times[-1] - times[0] + 33 * MS), rate] if declared else [])
    assert found.constant
    if declared:
        assert found.rate == rate
    elif count / rate > 8:  # in shorter clips, NTSC's rates agree too
        assert abs(found.rate - rate) < rate / 2000


@pytest.mark.parametrize("fault", ["drift", "late frame", "pause", "jitter of no whole milliseconds"])
@pytest.mark.parametrize("rate", [Fraction(30), Fraction(24000, 1001)])
def test_measure_of_times_that_rounding_does_not_explain_is_variable(rate: Fraction, fault: str) -> None:
    random = np.random.default_rng(0)
    times = []
    for n in range(120):
        time = n / rate
        if fault == "drift":
            time += Fraction(n * n, 120 * 120) * 8 * MS
        elif fault == "late frame":
            time += 3 * MS * (n == 70)
        elif fault == "pause":
            time += 3 * MS * (n >= 70)
        else:
            time += Fraction(int(random.integers(-400, 400)), 1_000_000)
        times.append(rounded(time, MS) if "whole" not in fault else rounded(time, FINE))
    found = timing(times, FINE, [rate])
    assert not found.constant
    assert found.rate == pytest.approx(119 / (times[-1] - times[0]), rel=0.02)


@pytest.mark.parametrize("dropped", [{5}, {10, 11, 25}, {38}, set(range(3, 38, 4))])
@pytest.mark.parametrize("rate", [25, 5000])
def test_measure_of_ticks_as_long_as_frames_with_frames_dropped_is_variable(dropped: set[int], rate: int) -> None:
    tick = Fraction(1, rate)
    kept = [n for n in range(40) if n not in dropped]
    mean = Fraction(len(kept) * rate, 40)
    for declared in ([], [mean, Fraction(rate)], [Fraction(rate)]):
        found = timing([n * tick for n in kept], tick, declared, tick)
        assert (found.rate, found.constant) == (mean, False)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_frames_dropped_on_a_coarse_clock_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    times = [n for n in range(40) if n not in (10, 11, 25)]
    frames = rgb_frames(PICTURES[: len(times)], "yuv420p")
    clock = {"video_track_timescale": "25"} if suffix == ".mp4" else {}
    info, _ = read_all(encode(tmp_path / f"a{suffix}", frames, codec="mpeg4", times=times, container_options=clock))
    assert (info.fps, info.frames, info.variable_frame_rate) == (Fraction(185, 8), 37, True)
    assert "variable frame rate" in caplog.text
    assert "23.125" in caplog.text


@pytest.mark.parametrize("rate", [250, 300, 600, 960, 1000])
def test_rates_near_the_clock_of_matroska_are_constant(tmp_path: Path, rate: int) -> None:
    info, _ = read_all(encode(tmp_path / "a.mkv", rgb_frames(PICTURES), rate=Fraction(rate)))
    assert (info.fps, info.variable_frame_rate) == (rate, False)


def remux(source: Path, target: Path) -> Path:
    """Copy the video packets, as `ffmpeg -c copy` does."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream: Any = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        for packet in before.demux(stream):
            if packet.size:
                packet.stream = copy
                after.mux(packet)
    return target


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(30), Fraction(60000, 1001)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".ts"])
def test_a_remuxed_clip_keeps_its_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rate: Fraction, suffix: str
) -> None:
    frames = rgb_frames(PICTURES[:16], "yuv420p")
    earlier = encode(tmp_path / "a.mkv", frames, codec="libx264", rate=rate, options={"bf": "0"})
    info, _ = read_all(remux(earlier, tmp_path / f"a{suffix}"))
    assert (info.fps, info.variable_frame_rate) == (rate, False)
    assert not caplog.records


@pytest.mark.parametrize("rate", [Fraction(16), Fraction(30), Fraction(24000, 1001)])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".ts", "libx264"), (".mp4", "libx264"), (".mov", "libx264"), (".mkv", "ffv1"), (".avi", "mpeg4")],
)
def test_a_lone_frame_has_the_declared_rate(tmp_path: Path, rate: Fraction, suffix: str, codec: str) -> None:
    frames = rgb_frames(PICTURES[:1], "bgr0" if codec == "ffv1" else "yuv420p")
    info, _ = read_all(encode(tmp_path / f"a{suffix}", frames, codec=codec, rate=rate))
    assert (info.fps, info.frames, info.variable_frame_rate) == (rate, 1, False)


def test_a_lone_frame_without_a_declared_rate_has_that_of_its_duration() -> None:
    lasts = Fraction(1, 10)
    assert timing([Fraction(0)], Fraction(1, 100), [Fraction(100)], lasts).rate == 10
    assert timing([Fraction(0)], MS, [], 33 * MS).rate == 30
    assert timing([Fraction(0)], MS, []).rate == 24
    assert timing([Fraction(0)], MS, [Fraction(16)]).rate == 16
    chosen = measure([(n * lasts, lasts) for n in range(9)], tick=MS, rates=[], frames=(4, 5))
    assert (chosen.rate, chosen.start, chosen.end) == (10, Fraction(4, 10), Fraction(5, 10))


def test_slow_and_fast_rates_are_exact() -> None:
    for rate in (Fraction(1, 86400), Fraction(1, 7), Fraction(5000), Fraction(90000)):
        found = timing([n / rate for n in range(5)], min(MS, 1 / rate), [])
        assert (found.rate, found.constant) == (rate, True)


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (25, Fraction(25)),
        (29.97002997, Fraction(30000, 1001)),
        (np.float32(12.5), Fraction(25, 2)),
        (np.int64(24), Fraction(24)),
        (1 / 3600, Fraction(1, 3600)),
        (Fraction(10**5000 + 1, 10**5000), Fraction(1)),
        (Fraction(2997, 125), Fraction(2997, 125)),
        (FASTEST, FASTEST),
        (SLOWEST, SLOWEST),
    ],
)
def test_exact_rate_has_terms_that_a_container_stores(given: float, exact: Fraction) -> None:
    rate = exact_rate(given)
    assert type(rate) is Fraction
    assert rate == exact


@pytest.mark.parametrize(
    "fps",
    [1e-320, 0, -1, math.inf, math.nan, True, "25", None, 65537, 1e-5, 10**5000, -(10**5000), Fraction(1, 10**5000)],
    ids=lambda fps: type(fps).__name__,  # the longest cannot be printed
)
def test_exact_rate_of_an_impossible_number_is_refused(fps: Any) -> None:
    with pytest.raises(ClipError, match=r"frames a second is not possible; the rate must be above 0, a number from"):
        exact_rate(fps)
