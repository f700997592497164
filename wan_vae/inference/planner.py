"""Chooses how a clip is cut up: the least operations that keep to a budget of memory.

What a planner decided.

What one device has of a picture that several share.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.inference.budget import format_bytes
from wan_vae.inference.tiling import Tiling, intervals_of, receptive_margin, size_after, split_evenly
from wan_vae.model.halo import Neighbors, NoNeighbors, Padding
from wan_vae.model.stages import LocalStage, pixels_per_latent


@dataclass(frozen=True)
class Plan:
    """How one call goes through the network.

    Attributes:
        call: "encode" or "decode".
        budget: Bytes it may take beside the loaded model and its input.
        peak: Bytes it is predicted to take at most.
        overhead: Operations beyond those of whole pictures, as a part of them.
        latents_per_pass: How many latents go together, or the frames of as many.
        tiling: How pictures are cut; None if they are not.
        steps: How many steps the network's local part has.
    """

    call: str
    budget: int
    peak: int
    overhead: float
    latents_per_pass: int
    tiling: Tiling | None
    steps: int

    def __str__(self) -> str:
        passes = "1 latent a pass" if self.latents_per_pass == 1 else f"{self.latents_per_pass} latents a pass"
        return (
            f"{self.call}: {self.cut}, {passes}; at most {format_bytes(self.peak)} of {format_bytes(self.budget)},"
            f" {100 * self.overhead:.1f} % more operations than whole pictures"
        )

    @property
    def cut(self) -> str:
        """How pictures are cut, in words."""
        if self.tiling is None:
            return "whole pictures"
        tiles = f"{self.tiling.rows}x{self.tiling.columns} tiles (rows x columns)"
        whole = self.tiling.first + self.steps - self.tiling.last
        return f"{tiles} in {self.steps - whole} of {self.steps} steps"


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Part:
    """A part of a picture, by default all of it. Tensors are (B, C, T, H, W).

    Attributes:
        neighbors: Who holds the pixels around it.
        beyond: How many rows and columns of latents the picture has on each side of it.
        cut: Takes what is given to the call, and returns this part of it.
        joined: Takes this part of the result, and returns what the call returns.
    """

    neighbors: Neighbors = field(default_factory=NoNeighbors)
    beyond: Padding = field(default_factory=Padding)
    cut: Callable[[Tensor], Tensor] = _as_it_is
    joined: Callable[[Tensor], Tensor] = _as_it_is


# Bytes that libraries take for their own ends, whatever the sizes.
_LIBRARIES = 10 * 2**20
# How near predictions were measured to be.
_UNCERTAINTY = 0.06
_MEBIBYTE = 2**20
_ENDLESS = 2**63
# A stream remembers the margins of all tiles: more of them soon take more together than each of them saves.
_GRIDS_OF_STREAMS = ((1, 2), (2, 1), (2, 2), (2, 3), (3, 3))
_WHOLE_STEPS_OF_STREAMS = 2


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        call: "encode" or "decode".
        steps: The network's local part.
        costs: Operations of each step, by pixel of its input.
        height: Of the clip in latents, or of a part of it.
        width: Likewise.
        beyond: Latents of the picture on each side, which a part's neighbors hold.
        latents_per_pass: How many latents go together at most.
        goes_on: Whether it is a stream, which remembers something of every tile.
        peak: Predicts the bytes held at most, if that many latents go together, in such tiles or in whole pictures.
    """

    call: str
    steps: Sequence[LocalStage]
    costs: Sequence[float]
    height: int
    width: int
    beyond: Padding
    latents_per_pass: int
    streaming: bool
    peak: Callable[[int, Tiling | None], int]


def choose(job: Job, budget: int) -> Plan:
    """Return the plan of the least operations that keeps to `budget` bytes; of whole pictures, the fewest passes.

    Raises:
        UserError: None does; the message names the smallest budget that one keeps to.
    """
    count, latents = len(job.steps), job.latents_per_pass
    while True:
        least = _predicted(job, latents, None)
        if least <= budget:
            return Plan(job.call, budget, least, 0.0, latents, None, count)
        if latents == 1:
            break
        latents //= 2
    stretches = [_Stretch(job, first, last) for first, last in _stretches(job)]
    candidates = sorted(
        ((stretch.overhead(*grid), index, grid) for index, stretch in enumerate(stretches) for grid in stretch.grids),
    )
    for overhead, index, grid in candidates:
        stretch = stretches[index]
        if stretch.may_fit(*grid, budget):
            peak = stretch.predict(*grid)
            if peak <= budget:
                return Plan(job.call, budget, peak, overhead, 1, stretch.tiling(*grid), count)
    least = min([least, *(stretch.least for stretch in stretches)])
    raise UserError(
        f"{format_bytes(budget)} of memory is too little to {job.call} this clip; {-(-least // _MEBIBYTE)}MiB is the"
        " smallest that works."
    )


class _Stretch:
    """The steps that might run tile by tile, and what that would cost."""

    def __init__(self, job: Job, first: int, last: int) -> None:
        self._job = job
        self._range = first, last
        self._steps = job.steps[first:last]
        self._costs = job.costs[first:last]
        self._rows = self._lengths(job.height, job.beyond.top, job.beyond.bottom)
        self._columns = self._lengths(job.width, job.beyond.left, job.beyond.right)
        pixels = [job.height * job.width * pixels_per_latent(job.steps, place) ** 2 for place in range(len(job.steps))]
        self._whole = sum(cost * size for cost, size in zip(self._costs, pixels[first:last], strict=True))
        self._total = sum(cost * size for cost, size in zip(job.costs, pixels, strict=True))
        self.grids = [
            grid for grid in product(self._rows, self._columns) if grid in _GRIDS_OF_STREAMS or not job.streaming
        ]
        self.grids = [grid for grid in self.grids if grid != (1, 1)]
        self._peaks: dict[tuple[int, int], int] = {}
        self._known: list[tuple[int, int]] = []

    @property
    def least(self) -> int:
        """The bytes that the thriftiest grid takes: the finest one, unless the memory of all tiles counts."""
        if self._job.streaming:
            return min([self.predict(*grid) for grid in self.grids], default=_ENDLESS)
        return self.predict(max(self._rows), max(self._columns))

    def tiling(self, rows: int, columns: int) -> Tiling:
        """Return how these steps run in a grid of tiles."""
        return Tiling(rows, columns, *self._range)

    def overhead(self, rows: int, columns: int) -> float:
        """Return the operations in the tiles' margins, as a part of all."""
        lengths = zip(self._costs, self._rows[rows].sums, self._columns[columns].sums, strict=True)
        return (sum(cost * high * wide for cost, high, wide in lengths) - self._whole) / self._total

    def may_fit(self, rows: int, columns: int, budget: int) -> bool:
        """Whether a grid may keep to a budget, as far as is known by now."""
        if self._job.streaming:
            return True
        if self.least > budget:
            return False
        if (rows, columns) in self._peaks:
            return self._peaks[rows, columns] <= budget
        values = self._values(rows, columns)
        # What is no tile's takes as much in any grid: a tile twice as small takes half as much together, or more.
        known = [peak * values / of for of, peak in self._known if values <= of]
        return max(known, default=0) <= budget

    def predict(self, rows: int, columns: int) -> int:
        """Return the bytes that a grid takes."""
        if (rows, columns) not in self._peaks:
            peak = _predicted(self._job, 1, self.tiling(rows, columns))
            self._peaks[rows, columns] = peak
            self._known.append((self._values(rows, columns), peak))
        return self._peaks[rows, columns]

    def _values(self, rows: int, columns: int) -> int:
        largest = zip(self._steps, self._rows[rows].largest, self._columns[columns].largest, strict=True)
        return max(step.values * high * wide for step, high, wide in largest)

    def _lengths(self, latents: int, ahead: int, behind: int) -> dict[int, "_Lengths"]:
        """Return by count of tiles, for counts of which none has tiles as large as a smaller one's.

        Args:
            latents: In a row or a column.
            ahead: How many more the picture has before them.
            behind: Likewise, after them.
        """
        first, last = self._range
        before, after = pixels_per_latent(self._job.steps, first), pixels_per_latent(self._job.steps, last)
        # Tiles may look at what neighbors hold, and there, too, they are at the picture's edge or they are not.
        margin = receptive_margin(self._steps) if ahead or behind else 0
        ahead, behind = min(margin, ahead * before), min(margin, behind * before)
        length, moved = ahead + latents * before + behind, size_after(self._steps, ahead)
        lengths: dict[int, _Lengths] = {}
        size = latents + 1
        for count in range(1, latents + 1):
            if -(-latents // count) < size:
                size = -(-latents // count)
                parts = split_evenly(latents * after, count, after)
                tiles = [part.moved(moved) for part in parts]
                spans = [intervals_of(self._steps, length, tile)[:-1] for tile in tiles]
                by_step = [[stop - start for start, stop in step] for step in zip(*spans, strict=True)]
                lengths[count] = _Lengths([sum(step) for step in by_step], [max(step) for step in by_step])
        return lengths


@dataclass(frozen=True)
class _Lengths:
    """What tiles side by side take of each step's input: together, and the largest one."""

    sums: Sequence[int]
    largest: Sequence[int]


def _stretches(job: Job) -> Iterator[tuple[int, int]]:
    """Yield what to tile: all steps, then fewer, without those whose tensors are smallest."""
    count = len(job.steps)
    for whole in range(min(count, _WHOLE_STEPS_OF_STREAMS) if job.streaming else count):
        yield (whole, count) if job.call == "decode" else (0, count - whole)


def _predicted(job: Job, latents_per_pass: int, tiling: Tiling | None) -> int:
    return int((1 + _UNCERTAINTY) * job.peak(latents_per_pass, tiling)) + _LIBRARIES
