"""Frame timing: frame rate and count from timestamps, and resampling to another rate."""

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from wan_vae.errors import ClipError

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Timing of the selected frames of a source."""

    count: int  # of the selected frames
    total: int  # of the frames in the source
    rate: Fraction  # frames per second; the average over the selection if the rate is variable
    constant: bool  # all timestamps agree with `rate` within the resolution of the container
    start: Fraction  # timestamp of the first selected frame in the source, in seconds
    end: Fraction  # timestamp of the end of the last selected frame, in seconds


def format_slice(frames: tuple[int | None, int | None]) -> str:
    """Format a slice: "3:" for (3, None)."""
    return ":".join("" if number is None else str(number) for number in frames)


def sort_by_time(shown: Iterable[tuple[Fraction, Fraction]]) -> Iterator[tuple[Fraction, Fraction]]:
    """Sort (timestamp, duration) from decoding order by timestamp, in constant memory."""
    reordering = 64  # packets are stored in decoding order; no codec moves a frame by more places than this
    waiting: list[tuple[Fraction, Fraction]] = []
    for time_and_duration in shown:
        heapq.heappush(waiting, time_and_duration)
        if len(waiting) > reordering:
            yield heapq.heappop(waiting)
    while waiting:
        yield heapq.heappop(waiting)


def measure(
    shown: Iterable[tuple[Fraction, Fraction]],
    *,
    tick: Fraction,
    rates: Iterable[Fraction],
    frames: tuple[int | None, int | None],
) -> Timing:
    """Find the timing of selected frames from the timestamps of all frames; a ClipError if none is selected.

    Args:
        shown: Timestamp and duration of every frame in seconds, ascending. Only the last duration is used; 0 if
            unknown.
        tick: Time unit of the container, in seconds. Timestamps of a constant rate are off by at most one unit.
        rates: Frame rates the container declares, best first. The first that agrees with the timestamps is used.
        frames: First frame and the one after the last, as in a slice.
    """
    first, stop = frames[0] or 0, math.inf if frames[1] is None else frames[1]
    total = count = 0
    start = last = last_duration = Fraction(0)
    end: Fraction | None = None
    slowest, fastest = Fraction(0), Fraction(1_000_000)
    for time, duration in shown:
        last_duration = duration
        if total == first:
            start = time
        if first <= total < stop:
            if count and time - start + tick > 0:
                slowest = max(slowest, count / (time - start + tick))
            if count and time - start - tick > 0:
                fastest = min(fastest, count / (time - start - tick))
            last, count = time, count + 1
        elif total == stop:
            end = time
        total += 1
    if count == 0:
        raise ClipError(f"frames {format_slice(frames)} selects no frame: the clip has {total}, numbered from 0.")
    constant = slowest <= fastest
    rate = _matching_rate(slowest, fastest, rates) if constant else None
    if end is None:
        mean = (last - start) / (count - 1) if count > 1 else Fraction(0)
        end = last + (last_duration or (1 / rate if rate else mean))
    if rate is None:
        rate = _simplified(count / (end - start)) if end > start else Fraction(24)
    return Timing(count, total, rate, constant, start, max(end, start + 1 / rate))


def _matching_rate(slowest: Fraction, fastest: Fraction, rates: Iterable[Fraction]) -> Fraction | None:
    middle = (slowest + fastest) / 2 if slowest else None
    for rate in [*map(_unrounded, rates), *(_usual_rates(middle) if middle else [])]:
        if slowest <= rate <= fastest and 0 < rate <= 1000:
            return rate
    return _simplified(middle) if middle else None


def _usual_rates(rate: Fraction) -> list[Fraction]:
    """The nearest integer rate and the nearest NTSC rate (1000/1001 of an integer)."""
    return [Fraction(round(rate)), Fraction(round(rate * 1001 / 1000) * 1000, 1001)]


def _unrounded(rate: Fraction) -> Fraction:
    # FFmpeg keeps numerators of Matroska rates below 30000, which turns 60000/1001 into 19001/317.
    near = [usual for usual in _usual_rates(rate) if abs(usual - rate) < rate / 1_000_000]
    return near[0] if near else rate


def _simplified(rate: Fraction) -> Fraction:
    return rate.limit_denominator(1001) or rate


def exact_rate(fps: Fraction | float) -> Fraction:
    """Return a frame rate as a fraction; a float becomes a simple one near it: 29.97002997 becomes 30000/1001.

    A ClipError if the rate is NaN or infinite.
    """
    if not math.isfinite(fps):
        raise ClipError(f"{fps} frames a second is not possible; give a number above 0.")
    return fps if isinstance(fps, Fraction) else _simplified(Fraction(float(fps)))


def resampled_count(duration: Fraction, rate: Fraction) -> int:
    """Number of frames that `resample` yields for `duration` seconds at `rate` frames per second."""
    return max(1, math.floor(duration * rate + Fraction(1, 2)))


def resample(timed: Iterable[tuple[Fraction, T]], duration: Fraction, rate: Fraction | None) -> Iterator[T]:
    """Repeat or drop frames to change the rate and keep the duration: yield the one displayed at each time.

    Args:
        timed: Seconds since the first frame, ascending, and the frame.
        duration: End of the last frame, in seconds since the first.
        rate: Frames per second; None yields every frame once.
    """
    if rate is None:
        yield from (frame for _, frame in timed)
        return
    lateness = Fraction(1, 8)  # tolerated delay of a frame in periods of the new rate: containers round timestamps
    count = 0
    current: list[T] = []
    for time, frame in timed:
        while current and count < math.ceil(time * rate - lateness):
            yield current[0]
            count += 1
        current = [frame]
    while current and count < resampled_count(duration, rate):
        yield current[0]
        count += 1
