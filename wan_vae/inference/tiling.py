"""Exact tiles: how a picture is cut, which pixels each stage needs for a tile, and the halo that runs them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wan_vae.arguments import check_count
from wan_vae.errors import UserError
from wan_vae.model.halo import CachedHalo, Halo, Neighbors
from wan_vae.model.stages import LocalStage, StageFunction, frames_per_latent, pixels_per_latent
from wan_vae.ops import needs_plain_ops
from wan_vae.ops.memory_estimator import estimator_of, representative_passes
from wan_vae.ops.workspace import Workspace


@dataclass(frozen=True)
class Tiling:
    """How a clip is cut into tiles; `Plan.tiling` is one that fits, of a network of `Plan.stages` stages.

    Attributes:
        rows: Rows of tiles.
        columns: Columns of tiles.
        first: Index of the first local stage that runs tile by tile; earlier ones run on whole frames.
        last: Index after the last stage that runs tile by tile; later ones run on whole frames.
        latents_per_pass: Latents, or the frames of as many, per pass after the first.

    Raises:
        UserError: They are no whole numbers, or make no tiling.
    """

    rows: int
    columns: int
    first: int
    last: int
    latents_per_pass: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_count(f"The tiling's {name}", value, 0 if name in ("first", "last") else 1, 2**31)
        if self.first > self.last:
            raise UserError(f"The tiling's first is {self.first}, after its last, which is {self.last}.")


class Interval(NamedTuple):
    """Pixels of a row or column from `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def slice(self) -> slice:
        """The interval as an index."""
        return slice(self.start, self.stop)

    def moved(self, by: int) -> "Interval":
        """Return the interval shifted by `by` pixels."""
        return Interval(self.start + by, self.stop + by)


class Box(NamedTuple):
    """A rectangle of pixels."""

    rows: Interval
    columns: Interval

    def moved(self, down: int, right: int) -> "Box":
        """Return the box shifted down and to the right."""
        return Box(self.rows.moved(down), self.columns.moved(right))


def split_evenly(size: int, count: int, multiple: int) -> list[Interval]:
    """Cut `size` pixels into at most `count` intervals, as even as multiples of `multiple` allow."""
    cells = size // multiple
    count = min(count, cells)
    bounds = [cells * index // count * multiple for index in range(count + 1)]
    return [Interval(start, stop) for start, stop in pairwise(bounds)]


def largest_tile(
    stages: Sequence[LocalStage], height: int, width: int, rows: Sequence[Interval], columns: Sequence[Interval]
) -> Box:
    """Return the tile with the largest tensor among those of a grid; arguments as for `boxes_of`."""
    # Most tiles of a grid have the same size.
    by_height = {_lengths(stages, height, interval): interval for interval in rows}
    by_width = {_lengths(stages, width, interval): interval for interval in columns}

    def largest(lengths: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
        return max(stage.channels * high * wide for stage, high, wide in zip(stages, *lengths, strict=True))

    high, wide = max(product(by_height, by_width), key=largest)
    return Box(by_height[high], by_width[wide])


def size_after(stages: Sequence[LocalStage], size: int) -> int:
    """Return the height or width after the stages."""
    for stage in stages:
        size = size * stage.upscale // stage.downscale
    return size


def receptive_margin(stages: Sequence[LocalStage]) -> int:
    """Return the receptive margin around a part of the input, in pixels, as a multiple of the stages' downscaling."""
    unit = math.prod(stage.downscale for stage in stages)
    # Far from the picture's edges.
    start = unit * 2**20
    ahead = Interval(size_after(stages, start), size_after(stages, start + unit))
    around = intervals_of(stages, 2 * start, ahead)[0]
    return -(-max(start - around.start, around.stop - start - unit) // unit) * unit


def boxes_of(stages: Sequence[LocalStage], height: int, width: int, tile: Box) -> list[Box]:
    """Return the input that each stage needs for a tile, and last the tile itself.

    Args:
        stages: The stages that run tile by tile.
        height: Height of the picture before the first stage.
        width: Width of the picture before the first stage.
        tile: A box of the picture after the last stage.

    Returns:
        One box per stage in pixels of its input picture, then the tile.
    """
    rows, columns = intervals_of(stages, height, tile.rows), intervals_of(stages, width, tile.columns)
    return [Box(*intervals) for intervals in zip(rows, columns, strict=True)]


def intervals_of(stages: Sequence[LocalStage], size: int, tile: Interval) -> list[Interval]:
    """Return the part of a row or column of `size` pixels that each stage needs, and last the tile itself."""
    sizes = [size_after(stages[:place], size) for place in range(len(stages) + 1)]
    assert 0 <= tile.start < tile.stop <= sizes[-1], (tile, sizes)
    intervals = [tile]
    for stage, length in zip(reversed(stages), reversed(sizes[:-1]), strict=True):
        start, stop = intervals[-1]
        # Downscaling needs whole cells. At the picture's edge the network pads its own zeros.
        start = (start * stage.downscale // stage.upscale - stage.radius) // stage.downscale * stage.downscale
        stop = -(-(-(-stop * stage.downscale // stage.upscale) + stage.radius) // stage.downscale) * stage.downscale
        intervals.append(Interval(max(0, start), min(length, stop)))
    return intervals[::-1]


def _lengths(stages: Sequence[LocalStage], size: int, tile: Interval) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in intervals_of(stages, size, tile)[:-1])


_TILING = "tiling"
_TILE = "tile"


class TiledHalo(CachedHalo):
    """Runs the local stages tile by tile, with the result of the whole picture.

    A tile is processed like a small picture, as a box with a margin. The pixels that the zeros at the box's edges spoil
    are cut away after each stage, by as much as its receptive-field radius.

    Where the whole clip is at hand, each tile runs through all of it before the next tile begins, so that the temporal
    cache exists for one tile at a time. No gradients.

    Args:
        tiling: How the picture is cut.
        neighbors: The holders of the pixels around the picture; default none. They are asked once, for all tiles.
        streaming: Whether the clip arrives in chunks, as for `CachedHalo`; then the caches of all tiles are kept.
    """

    def __init__(self, tiling: Tiling, neighbors: Neighbors | None = None, *, streaming: bool = False) -> None:
        super().__init__(neighbors)
        self.tiling = tiling
        self._streaming = streaming
        self._parts: dict[str, CachedHalo] = {}

    def run_global(self, stage: StageFunction, x: Tensor) -> Tensor:
        """Run a stage that needs whole frames, a few latents at a time."""
        _check_no_plain_ops()
        return self._run_on_whole_frames("stage", (LocalStage(stage, radius=0, channels=0, temporal=True),), x, 1, 1)

    def run_local(self, stages: Sequence[LocalStage], x: Tensor) -> Tensor:
        """Run the stages that the tiling selects tile by tile, and the others on whole frames."""
        _check_no_plain_ops()
        first, last = self.tiling.first, self.tiling.last
        lengths = [frames_per_latent(stages, place) for place in (0, first, last, len(stages))]
        x = self._run_on_whole_frames("before", stages[:first], x, *lengths[:2])
        x = self._run_in_tiles(stages[first:last], x, pixels_per_latent(stages, last), *lengths[1:3])
        return self._run_on_whole_frames("after", stages[last:], x, *lengths[2:])

    @property
    def cached_bytes(self) -> int:
        return sum(part.cached_bytes for part in self._parts.values())

    def _run_on_whole_frames(
        self, name: str, stages: Sequence[LocalStage], x: Tensor, in_frames: int, out_frames: int
    ) -> Tensor:
        if not stages:
            return x
        passes = self._passes(name, x, in_frames, out_frames)
        halo, result = self._part(name, passes, Workspace(recycle=False), self.neighbors), None
        for before, after in representative_passes(passes, x):
            part = halo.run_local(stages, x[:, :, before])
            result = _empty_result(part, passes.out_frames, *part.shape[3:]) if result is None else result
            result[:, :, after] = part
            del part
            halo.advance()
        assert result is not None
        return result

    def _run_in_tiles(
        self, stages: Sequence[LocalStage], x: Tensor, cell: int, in_frames: int, out_frames: int
    ) -> Tensor:
        if not stages:
            return x
        height, width = (size_after(stages, size) for size in x.shape[3:])
        # From here on the neighbors' pixels count as part of the picture.
        x, known = self.neighbors.around(x, receptive_margin(stages))
        down, right = size_after(stages, known.top), size_after(stages, known.left)
        workspace, result = Workspace(recycle=False), None
        rows = [interval.moved(down) for interval in split_evenly(height, self.tiling.rows, cell)]
        columns = [interval.moved(right) for interval in split_evenly(width, self.tiling.columns, cell)]
        places: Iterable[tuple[Interval, Interval]] = product(rows, columns)
        estimator = estimator_of(x)
        if estimator is not None:  # the largest stands for all
            places = [largest_tile(stages, x.shape[3], x.shape[4], rows, columns)]
        for index, place in enumerate(Box(*intervals) for intervals in places):
            name, tile = f"{_TILE}{index}", place.moved(-down, -right)
            boxes = boxes_of(stages, x.shape[3], x.shape[4], place)
            cropping = [_cropping(stage, *pair) for stage, pair in zip(stages, pairwise(boxes), strict=True)]
            passes = self._passes(name, x, in_frames, out_frames)
            halo = self._part(name, passes, workspace, None)
            for before, after in representative_passes(passes, x):
                part = halo.run_local(cropping, x[:, :, before, boxes[0].rows.slice, boxes[0].columns.slice])
                result = _empty_result(part, passes.out_frames, height, width) if result is None else result
                result[:, :, after, tile.rows.slice, tile.columns.slice] = part
                del part
                if estimator is not None and self._streaming and halo.at_start:
                    estimator.add((len(rows) * len(columns) - 1) * halo.cached_bytes)
                halo.advance()
            del halo
        assert result is not None
        return result

    def _passes(self, name: str, x: Tensor, in_frames: int, out_frames: int) -> "_Passes":
        if name not in self._parts and self._streaming and not self.at_start:
            raise UserError(f"The state has no entry of {name!r}, a part of its tiling; take the state as it was.")
        at_start = name not in self._parts or self._parts[name].at_start
        return _Passes(x.shape[2], at_start, in_frames, out_frames, self.tiling.latents_per_pass)

    def _part(self, name: str, passes: "_Passes", workspace: Workspace, neighbors: Neighbors | None) -> Halo:
        if not self._streaming:
            halo = Halo(neighbors) if len(passes) == 1 else CachedHalo(neighbors)
            halo.workspace = workspace
            return halo
        if name not in self._parts:
            self._parts[name] = CachedHalo(neighbors)
            self._parts[name].workspace = self.workspace
        return self._parts[name]

    def state_dict(self, model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
        """Return the caches of all parts under their names, and the tiling, which a resumed stream must keep."""
        assert self._streaming, "only a clip that arrives in chunks has a state"
        state = {f"{prefix}{_TILING}": torch.tensor(astuple(self.tiling), device="cpu")}
        for name, part in self._parts.items():
            state |= part.state_dict(model, f"{prefix}{name}.")
        return state

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
        entries = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
        for name in {entry.partition(".")[0] for entry in entries} - {_TILING}:
            # Stages on whole frames ask the neighbors, tiles do not.
            self._parts[name] = CachedHalo(None if name.startswith(_TILE) else self.neighbors)
            self._parts[name].workspace = self.workspace
            self._parts[name].load_state_dict(model, state, f"{prefix}{name}.")
        self.at_start = False


def tiling_of(state: Mapping[str, Tensor], prefix: str) -> Tiling | None:
    """Return the tiling of the stream that had this state; None for whole pictures."""
    tiling = state.get(f"{prefix}{_TILING}")
    if tiling is None:
        return None
    if tiling.shape != (len(fields(Tiling)),):
        raise UserError(f"The state's tiling is {tuple(tiling.shape)}; take the state as it was.")
    return Tiling(*tiling.tolist())


def _check_no_plain_ops() -> None:
    if needs_plain_ops():
        raise UserError("Tiles are computed without gradients, autocast and torch.compile; leave them and call again.")


class _Passes:
    """The passes of a part of the network: the clip's first frame alone, then the frames of some latents.

    Iterating yields the input frames of each pass and its output frames.

    Args:
        frames: Number of input frames.
        at_start: Whether the first of them is the clip's first.
        in_frames: Input frames per latent.
        out_frames: Output frames per latent.
        latents: Latents per pass.

    Attributes:
        out_frames: Number of output frames.
    """

    def __init__(self, frames: int, at_start: bool, in_frames: int, out_frames: int, latents: int) -> None:
        self._first = 1 if at_start and frames > 0 else 0
        self._count = (frames - self._first) // in_frames
        self._units = in_frames, out_frames
        self._latents = latents
        self.out_frames = self._first + self._count * out_frames

    def __len__(self) -> int:
        return self._first + -(-self._count // self._latents)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        first = self._first
        if first:
            yield slice(0, 1), slice(0, 1)
        for start in range(0, self._count, self._latents):
            stop = min(self._count, start + self._latents)
            given, returned = (slice(first + start * unit, first + stop * unit) for unit in self._units)
            yield given, returned


def _cropping(stage: LocalStage, box: Box, following: Box) -> LocalStage:
    """Return a stage that takes the pixels in `box` and returns those in `following`."""
    rows, columns = (
        slice(after.start - origin, after.stop - origin)
        for after, origin in (
            (after, before.start * stage.upscale // stage.downscale)
            for before, after in zip(box, following, strict=True)
        )
    )

    def run(x: Tensor, halo: Halo, /) -> Tensor:
        x = stage.run(x, halo)
        cropped = x[..., rows, columns]
        if cropped.shape == x.shape:
            return x
        # A copy, so that the uncropped tensor is freed and the next stage reads dense memory.
        copy = halo.workspace.empty(cropped.shape, like=x)
        copy.copy_(cropped)
        return copy

    return replace(stage, run=run)


def _empty_result(part: Tensor, frames: int, height: int, width: int) -> Tensor:
    return Workspace.empty_persistent((*part.shape[:2], frames, height, width), like=part)
