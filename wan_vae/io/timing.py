"""When a clip's pictures are shown: their rate, how many there are, and how to change the rate."""

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from wan_vae.errors import ClipError

T = TypeVar("T")

# Pictures are stored in decoding order; none of the codecs moves one by more places than this.
_REORDERING = 64

_LARGEST_DENOMINATOR = 1001

# How late a picture may come, in pictures of the new rate, and still count as there: containers round times.
_LATENESS = Fraction(1, 8)


@dataclass(frozen=True)
class Timing:
    """When the selected pictures of a source are shown.

    Attributes:
        count: Number of selected pictures.
        total: Number of pictures in the source.
        rate: Pictures a second; for a variable rate the average over the selection.
        constant: Whether every picture is shown when the rate says, as nearly as the container can tell.
        start: When the first selected picture appears, in seconds on the source's clock.
        end: When the last selected one disappears, likewise.
    """

    count: int
    total: int
    rate: Fraction
    constant: bool
    start: Fraction
    end: Fraction


def span(frames: tuple[int | None, int | None]) -> str:
    """A slice as it is written, "3:" for (3, None)."""
    return ":".join("" if number is None else str(number) for number in frames)


def in_order(shown: Iterable[tuple[Fraction, Fraction]]) -> Iterator[tuple[Fraction, Fraction]]:
    """Pictures' times and durations given in decoding order, sorted by time, in constant memory."""
    waiting: list[tuple[Fraction, Fraction]] = []
    for time_and_duration in shown:
        heapq.heappush(waiting, time_and_duration)
        if len(waiting) > _REORDERING:
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
    """Find the rate of the pictures `frames` selects, a slice, from when each picture of the source appears.

    Args:
        shown: When each picture appears and for how long it is shown, in seconds, by ascending time; only the last
            duration is used, and may be 0 for not known.
        tick: The container's unit of time: a constant rate's times are off by at most one.
        rates: What the container says the rate is, best guess first; taken if the times agree.
        frames: First picture and the one after the last, as in a slice.

    Raises:
        ClipError: No picture is selected.
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
        raise ClipError(f"frames {span(frames)} selects no frame: the clip has {total}, numbered from 0.")
    constant = slowest <= fastest
    rate = _fitting_rate(slowest, fastest, rates) if constant else None
    if end is None:
        mean = (last - start) / (count - 1) if count > 1 else Fraction(0)
        end = last + (last_duration or (1 / rate if rate else mean))
    if rate is None:
        rate = _readable(count / (end - start)) if end > start else Fraction(24)
    return Timing(count, total, rate, constant, start, max(end, start + 1 / rate))


def _fitting_rate(slowest: Fraction, fastest: Fraction, rates: Iterable[Fraction]) -> Fraction | None:
    middle = (slowest + fastest) / 2 if slowest else None
    for rate in [*map(_unrounded, rates), *(_usual_rates(middle) if middle else [])]:
        if slowest <= rate <= fastest and 0 < rate <= 1000:
            return rate
    return _readable(middle) if middle else None


def _usual_rates(rate: Fraction) -> list[Fraction]:
    """The whole number nearest to a rate, and the nearest of those that are 1000/1001 of one."""
    return [Fraction(round(rate)), Fraction(round(rate * 1001 / 1000) * 1000, 1001)]


def _unrounded(rate: Fraction) -> Fraction:
    # FFmpeg keeps numerators of Matroska's rates below 30000, which makes 19001/317 of 60000/1001.
    near = [usual for usual in _usual_rates(rate) if abs(usual - rate) < rate / 1_000_000]
    return near[0] if near else rate


def _readable(rate: Fraction) -> Fraction:
    return rate.limit_denominator(_LARGEST_DENOMINATOR) or rate


def resampled_count(duration: Fraction, rate: Fraction) -> int:
    """How many pictures `resample` makes of `duration` seconds at `rate` pictures a second."""
    return max(1, math.floor(duration * rate + Fraction(1, 2)))


def resample(timed: Iterable[tuple[Fraction, T]], duration: Fraction, rate: Fraction | None) -> Iterator[T]:
    """Repeat or leave out pictures so that they come `rate` a second and last as long as before.

    Each picture made is what is seen at its time in the source.

    Args:
        timed: When each picture appears, in seconds after the first, ascending; and the picture.
        duration: When the last disappears, likewise.
        rate: Pictures a second; None for every picture once.
    """
    if rate is None:
        yield from (picture for _, picture in timed)
        return
    made = 0
    held: list[T] = []
    for time, picture in timed:
        while held and made < math.ceil(time * rate - _LATENESS):
            yield held[0]
            made += 1
        held = [picture]
    while held and made < resampled_count(duration, rate):
        yield held[0]
        made += 1
