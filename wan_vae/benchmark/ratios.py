"""How many times as fast, from runs in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Ratio:
    """How many times as fast we are: above 1, we take less time.

    Attributes:
        pairs: Of each run and the other's run beside it, which had the same machine at nearly the same moment.
        median: Of those.
        least: Of those.
        most: Of those.
    """

    pairs: tuple[float, ...]
    median: float
    least: float
    most: float


def times_as_fast(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare the seconds of our runs with those of the other's."""
    pairs = tuple(their / our for our, their in zip(ours, theirs, strict=True))
    return Ratio(pairs, median(pairs), min(pairs), max(pairs))
