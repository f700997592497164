"""Frame timing: frame rate and count from timestamps, and resampling to another rate."""

import heapq
import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Rational, Real
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wan_vae.errors import ClipError

T = TypeVar("T")

SLOWEST, FASTEST = Fraction(1, 2**16), Fraction(2**16)
"""Frame rates of clips that can be opened, kept in a latents file, and written."""


@dataclass(frozen=True)
class Timing:
    """Timing of the selected frames of a source. Timestamps are in seconds.

    Attributes:
        needed: The frames of the source that show the selection; open where all to the end of the source are wanted.
        count: Number of these frames.
        total: Number of frames in the source.
        rate: Frames per second; if it is variable, the average over the selection, or over the source if that is
            resampled.
        constant: All timestamps agree with `rate` within the resolution of the container.
        origin: Timestamp of frame 0 of the source by a clock of `rate`.
        start: Timestamp of the beginning of the selection.
        end: Timestamp of its end.
    """

    needed: slice
    count: int
    total: int
    rate: Fraction
    constant: bool
    origin: Fraction
    start: Fraction
    end: Fraction


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
    fps: Fraction | None = None,
) -> Timing:
    """Find the timing of selected frames from the timestamps of all frames; a ClipError if none is selected.

    The rate is constant if all timestamps are those of a steady clock that a container rounded to its time unit. An
    earlier container may have rounded them to milliseconds before: that is believed of usual rates, if all timestamps
    are whole milliseconds.

    Args:
        shown: Timestamp and duration of every frame in seconds, ascending. Only the last duration is used; 0 if
            unknown.
        tick: Time unit of the container, in seconds.
        rates: Frame rates the container declares, best first. The first that agrees with the timestamps is used, usual
            ones before others.
        frames: First frame and the one after the last, as in a slice: of the source, or, with `fps`, of what `resample`
            makes of the whole source.
        fps: Rate that the source is to be resampled to.
    """
    if fps is not None:
        return _measure_resampled(shown, tick, rates, frames, fps)
    first, stop = frames[0] or 0, math.inf if frames[1] is None else frames[1]
    total = 0
    start = last = last_duration = Fraction(0)
    end: Fraction | None = None
    seconds = array("d")  # 8 bytes a frame, since the best steady clock is known only at the end
    for time, duration in shown:
        last_duration = duration
        if first <= total < stop:
            start = start if seconds else time
            last = time
            seconds.append(float(time - start))
        elif total == stop:
            end = time
        total += 1
    count = len(seconds)
    if count == 0:
        raise ClipError(f"frames {format_slice(frames)} selects no frame: the clip has {total}, numbered from 0.")
    if end is None:
        mean = (last - start) / (count - 1) if count > 1 else Fraction(0)
        end = last + (last_duration or mean)
    if count == 1:
        seconds.append(float(end - start))  # the time of the next frame, if there were one
    declared = [_unrounded(rate) for rate in rates if rate > 0]
    rate = _constant_rate(np.array(seconds), float(tick), declared, count / (end - start) if end > start else None)
    constant = rate is not None or count == 1
    if rate is None:
        rate = _simplified(count / (end - start)) if end > start else [*declared, Fraction(24)][0]
    end = max(end, start + 1 / rate)
    return Timing(slice(*frames), count, total, rate, constant, start - first / rate, start, end)


def _measure_resampled(
    shown: Iterable[tuple[Fraction, Fraction]],
    tick: Fraction,
    rates: Iterable[Fraction],
    frames: tuple[int | None, int | None],
    fps: Fraction,
) -> Timing:
    """`measure` for frames that are counted after resampling."""
    slots = array("q")  # of every frame by its timestamp

    def noted() -> Iterator[tuple[Fraction, Fraction]]:
        origin: Fraction | None = None
        for time, duration in shown:
            origin = time if origin is None else origin
            slots.append(min(_slot(time - origin, fps), 2**62))  # such a clip is refused below
            yield time, duration

    whole = measure(noted(), tick=tick, rates=rates, frames=(None, None))
    total = resampled_count(whole.end - whole.start, fps)
    first, stop, _ = slice(*frames).indices(total)
    if first >= stop:
        raise ClipError(
            f"frames {format_slice(frames)} selects no frame: resampled to {fps} frames a second, the clip has {total},"
            " numbered from 0."
        )

    def showing(number: int) -> int:
        """The frame of the source that a resampled frame shows."""
        if whole.constant:
            return bisect_right(range(whole.total), number, key=lambda frame: _slot(frame / whole.rate, fps)) - 1
        return bisect_right(slots, number) - 1

    needed = slice(showing(first), None if stop == total else showing(stop - 1) + 1)
    return replace(
        whole,
        needed=needed,
        count=len(range(whole.total)[needed]),
        start=whole.start + first / fps,
        end=whole.end if stop == total else whole.start + stop / fps,
    )


def _constant_rate(
    seconds: npt.NDArray[np.float64], tick: float, declared: list[Fraction], mean: Fraction | None
) -> Fraction | None:
    """The rate of the steady clock that timestamps, of which the first is 0, were rounded from; None if there is none.

    `mean` is the number of frames over the time they take.
    """
    numbers = np.arange(len(seconds))

    def jitter(period: float) -> float:
        """Largest difference between the delays of two frames to a clock of this period."""
        return float(np.ptp(seconds - numbers * period))

    steadiest = _minimum(jitter, float(seconds[-1]) / int(numbers[-1]))
    if steadiest <= 0:
        return None
    milliseconds, exact = seconds * 1000, 1e-12 * float(seconds[-1])
    were_rounded = tick <= 1 / 1000 and np.abs(milliseconds - np.rint(milliseconds)).max() <= 1000.001 * tick
    near = Fraction(1 / steadiest)
    for rate in [
        *(rate for rate in declared if _is_usual(rate)),
        *(rate for rate in declared if jitter(float(1 / rate)) <= exact),
        *(rate for rate in _usual_rates(near) if rate > 0),
        *declared,
        _simplified(near),
    ]:
        period, rounding = float(1 / rate), tick
        if tick > period / 2 and len(seconds) > 2:
            # Rounding this coarse could explain frames that were dropped, so only a rate that was declared is believed,
            # and needs rounding. MP4 declares the mean.
            rounding = tick if rate in declared and rate != mean and (period / tick) % 1 > 1e-6 else 0
        elif were_rounded and _is_usual(rate) and tick + 1 / 1000 <= period / 2:
            rounding = tick + 1 / 1000
        if jitter(period) <= 1.001 * rounding + exact:
            return rate
    return None


def _minimum(function: Callable[[float], float], near: float) -> float:
    """Where a convex function has its minimum, from 0 to twice `near`."""
    low, high = 0.0, 2 * near
    for _ in range(100):  # each takes away a third, until neighbouring numbers are left
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if function(left) <= function(right) else (left, high)
    return (low + high) / 2


def _usual_rates(rate: Fraction) -> list[Fraction]:
    """The nearest integer rate and the nearest NTSC rate (1000/1001 of an integer)."""
    return [Fraction(round(rate)), Fraction(round(rate * 1001 / 1000) * 1000, 1001)]


def _is_usual(rate: Fraction) -> bool:
    return rate in _usual_rates(rate)


def _unrounded(rate: Fraction) -> Fraction:
    # FFmpeg keeps numerators of Matroska rates below 30000, which turns 60000/1001 into 19001/317.
    near = [usual for usual in _usual_rates(rate) if abs(usual - rate) < rate / 1_000_000]
    return near[0] if near else rate


def _simplified(rate: Fraction) -> Fraction:
    """The nearest fraction with small terms: of a rate below 1, the seconds a frame takes are one."""
    return rate.limit_denominator(1001) if rate >= 1 else 1 / (1 / rate).limit_denominator(1001)


def exact_rate(fps: Fraction | float) -> Fraction:
    """Return a frame rate as a fraction; a float becomes a simple one near it: 29.97002997 becomes 30000/1001.

    Terms of more than 31 bits, which no container stores, are rounded too. A ClipError if the rate is no number from
    `SLOWEST` to `FASTEST`.
    """
    if isinstance(fps, bool) or not isinstance(fps, Real) or not SLOWEST <= fps <= FASTEST:
        # Python refuses to print integers of thousands of digits.
        long = isinstance(fps, Rational) and fps.numerator.bit_length() + fps.denominator.bit_length() > 1000
        given = "such a number of" if long else fps if isinstance(fps, Real) else repr(fps)
        raise ClipError(
            f"{given} frames a second is not possible; the rate must be above 0, a number from {SLOWEST} to {FASTEST}."
        )
    if isinstance(fps, Rational) and max(fps.numerator, fps.denominator) < 2**31:
        return Fraction(fps)
    return _simplified(Fraction(fps) if isinstance(fps, Rational) else Fraction(float(fps)))


def resampled_count(duration: Fraction, rate: Fraction) -> int:
    """Number of frames that `resample` yields for `duration` seconds at `rate` frames per second."""
    return max(1, math.floor(duration * rate + Fraction(1, 2)))


def _slot(time: Fraction, rate: Fraction) -> int:
    """Number of the first frame at a rate that shows what appears at a time, in seconds since its first frame."""
    lateness = Fraction(1, 8)  # tolerated delay of a frame in periods of the new rate: containers round timestamps
    return math.ceil(time * rate - lateness)


def resample(timed: Iterable[tuple[Fraction, T]], duration: Fraction, rate: Fraction | None) -> Iterator[T]:
    """Repeat or drop frames to change the rate and keep the duration: yield the one displayed at each time.

    Args:
        timed: Seconds since the beginning, ascending, and the frame; the first may have appeared before.
        duration: Seconds from the beginning to the end of the last frame.
        rate: Frames per second; None yields every frame once.
    """
    if rate is None:
        yield from (frame for _, frame in timed)
        return
    count, total = 0, resampled_count(duration, rate)
    current: list[T] = []
    for time, frame in timed:
        while current and count < min(_slot(time, rate), total):
            yield current[0]
            count += 1
        current = [frame]
    while current and count < total:
        yield current[0]
        count += 1
