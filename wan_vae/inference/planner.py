"""Chooses how a clip is cut: the fewest operations that keep to a budget of memory."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.inference.budget import format_bytes
from wan_vae.inference.tiling import Tiling, intervals_of, receptive_margin, size_after, split_evenly
from wan_vae.model.halo import Neighbors, NoNeighbors, Padding
from wan_vae.model.stages import LocalStage, pixels_per_latent

# Bytes that libraries take for themselves, whatever the sizes.
_LIBRARIES = 10 * 2**20
# Relative error of the predictions, as measured.
_UNCERTAINTY = 0.06
_MEBIBYTE = 2**20
_ENDLESS = 2**63
# A stream caches the margins of all tiles: with more tiles, these soon take more together than each tile saves.
_GRIDS_OF_STREAMS = ((1, 2), (2, 1), (2, 2), (2, 3), (3, 3))
_WHOLE_STAGES_OF_STREAMS = 2


class BudgetError(UserError):
    """A budget is too small.

    Attributes:
        smallest: The least one that works, in bytes.
    """

    smallest = 0

    @classmethod
    def of(cls, direction: str, budget: int, smallest: int) -> "BudgetError":
        """Return the error of a call that does not fit a budget, in bytes."""
        error = cls(
            f"{format_bytes(budget)} of memory is too little to {direction} this clip; {-(-smallest // _MEBIBYTE)}MiB"
            " is the smallest that works."
        )
        error.smallest = smallest
        return error


@dataclass(frozen=True)
class Plan:
    """How one call runs in a budget of memory.

    Attributes:
        direction: "encode" or "decode".
        budget: Bytes that the call may take in addition to the loaded model and its input.
        peak: Bytes that it is predicted to take at most.
        overhead: Operations in addition to those of whole pictures, as a fraction of these.
        latents_per_pass: Latents, or the frames of as many, per pass.
        tiling: How pictures are tiled; None for whole pictures.
        stages: Number of stages in the network's local part.
    """

    direction: str
    budget: int
    peak: int
    overhead: float
    latents_per_pass: int
    tiling: Tiling | None
    stages: int

    def __str__(self) -> str:
        passes = "1 latent a pass" if self.latents_per_pass == 1 else f"{self.latents_per_pass} latents a pass"
        return (
            f"{self.direction}: {self.cut}, {passes}; at most {format_bytes(self.peak)} of {format_bytes(self.budget)},"
            f" {100 * self.overhead:.1f} % more operations than whole pictures"
        )

    @property
    def cut(self) -> str:
        """How pictures are tiled, in words."""
        if self.tiling is None:
            return "whole pictures"
        tiles = f"{self.tiling.rows}x{self.tiling.columns} tiles (rows x columns)"
        whole = self.tiling.first + self.stages - self.tiling.last
        return f"{tiles} in {self.stages - whole} of {self.stages} stages"


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Part:
    """One device's part of a picture, by default all of it. Tensors are (B, C, T, H, W).

    Attributes:
        neighbors: The holders of the pixels around it.
        beyond: Rows and columns of latents that the picture has on each side of it.
        cut: Takes the call's input and returns this part of it.
        joined: Takes this part of the result and returns the call's result.
        key: Identifies the part: parts with equal keys are cut and joined alike.
    """

    neighbors: Neighbors = field(default_factory=NoNeighbors)
    beyond: Padding = field(default_factory=Padding)
    cut: Callable[[Tensor], Tensor] = _unchanged
    joined: Callable[[Tensor], Tensor] = _unchanged
    key: Hashable = ()


@dataclass(frozen=True)
class PlanRequest:
    """A call to be planned."""

    direction: str  # "encode" or "decode"
    stages: Sequence[LocalStage]  # the network's local part
    operations: Sequence[float]  # of each stage, per pixel of its input
    height: int  # in latents, of the picture or of the part that is computed here
    width: int
    beyond: Padding  # latents of the picture on each side, which neighbors hold
    latents_per_pass: int  # at most
    streaming: bool  # a stream keeps a cache for every tile
    peak: Callable[[int, Tiling | None], int]  # most bytes held, by latents per pass and tiling (None: whole pictures)


def choose(request: PlanRequest, budget: int) -> Plan:
    """Return the plan with the fewest operations that keeps to `budget` bytes; for whole pictures, the fewest passes.

    Raises:
        BudgetError: No plan does; the message names the smallest budget for which there is one.
    """
    count, latents = len(request.stages), request.latents_per_pass
    while True:
        least = _predicted(request, latents, None)
        if least <= budget:
            return Plan(request.direction, budget, least, 0.0, latents, None, count)
        if latents == 1:
            break
        latents //= 2
    ranges = [_StageRange(request, first, last) for first, last in _stage_ranges(request)]
    candidates = sorted(
        (
            (stage_range.overhead(*grid), index, grid)
            for index, stage_range in enumerate(ranges)
            for grid in stage_range.grids
        ),
    )
    for overhead, index, grid in candidates:
        stage_range = ranges[index]
        if stage_range.may_fit(*grid, budget):
            peak = stage_range.predict(*grid)
            if peak <= budget:
                return Plan(request.direction, budget, peak, overhead, 1, stage_range.tiling(*grid), count)
    least = min([least, *(stage_range.least for stage_range in ranges)])
    raise BudgetError.of(request.direction, budget, least)


class _StageRange:
    """Stages that might run tile by tile, and what that would cost."""

    def __init__(self, request: PlanRequest, first: int, last: int) -> None:
        self._request = request
        self._range = first, last
        self._stages = request.stages[first:last]
        self._operations = request.operations[first:last]
        self._rows = self._lengths(request.height, request.beyond.top, request.beyond.bottom)
        self._columns = self._lengths(request.width, request.beyond.left, request.beyond.right)
        pixels = [
            request.height * request.width * pixels_per_latent(request.stages, place) ** 2
            for place in range(len(request.stages))
        ]
        self._whole = sum(cost * size for cost, size in zip(self._operations, pixels[first:last], strict=True))
        self._total = sum(cost * size for cost, size in zip(request.operations, pixels, strict=True))
        self.grids = [
            grid for grid in product(self._rows, self._columns) if grid in _GRIDS_OF_STREAMS or not request.streaming
        ]
        self.grids = [grid for grid in self.grids if grid != (1, 1)]
        self._peaks: dict[tuple[int, int], int] = {}
        self._known: list[tuple[int, int]] = []

    @property
    def least(self) -> int:
        """The fewest bytes that any grid takes: the finest one does, unless the caches of all tiles count."""
        if self._request.streaming:
            return min([self.predict(*grid) for grid in self.grids], default=_ENDLESS)
        return self.predict(max(self._rows), max(self._columns))

    def tiling(self, rows: int, columns: int) -> Tiling:
        """Return the tiling of these stages in a grid."""
        return Tiling(rows, columns, *self._range)

    def overhead(self, rows: int, columns: int) -> float:
        """Return the operations in the tiles' margins, as a fraction of all."""
        lengths = zip(self._operations, self._rows[rows][0], self._columns[columns][0], strict=True)
        return (sum(cost * high * wide for cost, high, wide in lengths) - self._whole) / self._total

    def may_fit(self, rows: int, columns: int, budget: int) -> bool:
        """Whether a grid may keep to a budget, given the predictions made so far."""
        if self._request.streaming:
            return True
        if self.least > budget:
            return False
        if (rows, columns) in self._peaks:
            return self._peaks[rows, columns] <= budget
        elements = self._elements(rows, columns)
        # Fixed costs do not shrink with tiles, so halving a tile at most halves the peak.
        known = [peak * elements / of for of, peak in self._known if elements <= of]
        return max(known, default=0) <= budget

    def predict(self, rows: int, columns: int) -> int:
        """Return the bytes that a grid is predicted to take."""
        if (rows, columns) not in self._peaks:
            peak = _predicted(self._request, 1, self.tiling(rows, columns))
            self._peaks[rows, columns] = peak
            self._known.append((self._elements(rows, columns), peak))
        return self._peaks[rows, columns]

    def _elements(self, rows: int, columns: int) -> int:
        largest = zip(self._stages, self._rows[rows][1], self._columns[columns][1], strict=True)
        return max(stage.channels * high * wide for stage, high, wide in largest)

    def _lengths(self, latents: int, ahead: int, behind: int) -> dict[int, tuple[list[int], list[int]]]:
        """Return by number of tiles, leaving out numbers that make none smaller, per stage: sum and largest length.

        Args:
            latents: Latents in a row or a column of this part.
            ahead: Latents that the picture has before them.
            behind: Latents that the picture has after them.
        """
        first, last = self._range
        before, after = pixels_per_latent(self._request.stages, first), pixels_per_latent(self._request.stages, last)
        # Margins reach into the neighbors' pixels, as far as the picture goes.
        margin = receptive_margin(self._stages) if ahead or behind else 0
        ahead, behind = min(margin, ahead * before), min(margin, behind * before)
        length, moved = ahead + latents * before + behind, size_after(self._stages, ahead)
        lengths: dict[int, tuple[list[int], list[int]]] = {}
        size = latents + 1
        for count in range(1, latents + 1):
            if -(-latents // count) < size:
                size = -(-latents // count)
                parts = split_evenly(latents * after, count, after)
                tiles = [part.moved(moved) for part in parts]
                intervals = [intervals_of(self._stages, length, tile)[:-1] for tile in tiles]
                by_step = [[stop - start for start, stop in stage] for stage in zip(*intervals, strict=True)]
                lengths[count] = [sum(stage) for stage in by_step], [max(stage) for stage in by_step]
        return lengths


def _stage_ranges(request: PlanRequest) -> Iterator[tuple[int, int]]:
    """Yield the stages to tile: all, then fewer, leaving out those with the smallest tensors first."""
    count = len(request.stages)
    for whole in range(min(count, _WHOLE_STAGES_OF_STREAMS) if request.streaming else count):
        yield (whole, count) if request.direction == "decode" else (0, count - whole)


def _predicted(request: PlanRequest, latents_per_pass: int, tiling: Tiling | None) -> int:
    return int((1 + _UNCERTAINTY) * request.peak(latents_per_pass, tiling)) + _LIBRARIES
