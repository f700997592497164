"""The halo of a clip whose frames are too large to be processed whole at the high resolutions.

How a picture is cut in tiles, and which pixels each step of the network needs for one.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wan_vae.model.halo import CachedHalo, Halo, Neighbors
from wan_vae.model.stages import LocalStage, StageFunction, frames_per_latent, pixels_per_latent
from wan_vae.ops.dispatch import needs_plain_ops
from wan_vae.ops.memory_estimator import estimator_of, representative_passes
from wan_vae.ops.workspace import Workspace


@dataclass(frozen=True)
class Tiling:
    """How a clip goes through the network in parts.

    Attributes:
        rows: Tiles one below the other.
        columns: Tiles side by side.
        first: How many of the network's steps run on whole frames before those that run tile by tile.
        last: How many steps have run when tiles are put together; those after run on whole frames.
        latents_per_pass: How many latents go together after the first, or the frames of as many.
    """

    rows: int
    columns: int
    first: int
    last: int
    latents_per_pass: int = 1


class Span(NamedTuple):
    """Pixels from `start` to before `stop`, of a row or a column."""

    start: int
    stop: int

    @property
    def slice(self) -> slice:
        """To index with."""
        return slice(self.start, self.stop)

    def moved(self, by: int) -> "Span":
        """Return a span as long, further on."""
        return Span(self.start + by, self.stop + by)


class Box(NamedTuple):
    """A rectangle of pixels."""

    rows: Span
    columns: Span

    def moved(self, down: int, right: int) -> "Box":
        """Return a window as large, further down and to the right."""
        return Box(self.rows.moved(down), self.columns.moved(right))


def split_evenly(size: int, count: int, multiple: int) -> list[Span]:
    """Cut `size` pixels in `count` spans as even as multiples of `multiple` allow; fewer if there are not as many."""
    cells = size // multiple
    count = min(count, cells)
    bounds = [cells * index // count * multiple for index in range(count + 1)]
    return [Span(start, stop) for start, stop in pairwise(bounds)]


def largest_tile(
    steps: Sequence[LocalStage], height: int, width: int, rows: Sequence[Span], columns: Sequence[Span]
) -> Box:
    """Return the tile whose largest tensor is largest, of those in so many rows and columns; else as `boxes_of`."""
    # Few of them differ in their lengths.
    by_height = {_lengths(steps, height, span): span for span in rows}
    by_width = {_lengths(steps, width, span): span for span in columns}

    def largest(lengths: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
        return max(step.values * high * wide for step, high, wide in zip(steps, *lengths, strict=True))

    high, wide = max(product(by_height, by_width), key=largest)
    return Box(by_height[high], by_width[wide])


def size_after(steps: Sequence[LocalStage], size: int) -> int:
    """Return what becomes of a height or width."""
    for step in steps:
        size = size * step.upscale // step.downscale
    return size


def receptive_margin(steps: Sequence[LocalStage]) -> int:
    """Return how many pixels around a part of the input have a say in its output, in units that steps do not divide."""
    unit = math.prod(step.downscale for step in steps)
    # Somewhere far from the picture's edges.
    start = unit * 2**20
    ahead = Span(size_after(steps, start), size_after(steps, start + unit))
    around = intervals_of(steps, 2 * start, ahead)[0]
    return -(-max(start - around.start, around.stop - start - unit) // unit) * unit


def boxes_of(steps: Sequence[LocalStage], height: int, width: int, tile: Box) -> list[Box]:
    """Return what each step must be given, and last the tile itself, in pixels of the picture at each one's place.

    Args:
        steps: What runs tile by tile.
        height: Of the picture before the first step.
        width: Likewise.
        tile: Of the picture after the last step.
    """
    rows, columns = intervals_of(steps, height, tile.rows), intervals_of(steps, width, tile.columns)
    return [Box(*spans) for spans in zip(rows, columns, strict=True)]


def intervals_of(steps: Sequence[LocalStage], size: int, tile: Span) -> list[Span]:
    """Return what each step must be given of a row or a column of `size` pixels, and last the tile itself."""
    sizes = [size_after(steps[:place], size) for place in range(len(steps) + 1)]
    assert 0 <= tile.start < tile.stop <= sizes[-1], (tile, sizes)
    spans = [tile]
    for step, length in zip(reversed(steps), reversed(sizes[:-1]), strict=True):
        start, stop = spans[-1]
        # Steps that reduce want whole cells. At the picture's edge the network's own zeros lie.
        start = (start * step.downscale // step.upscale - step.reach) // step.downscale * step.downscale
        stop = -(-(-(-stop * step.downscale // step.upscale) + step.reach) // step.downscale) * step.downscale
        spans.append(Span(max(0, start), min(length, stop)))
    return spans[::-1]


def _lengths(steps: Sequence[LocalStage], size: int, tile: Span) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in intervals_of(steps, size, tile)[:-1])


_TILING = "tiling"
_TILE = "tile"


class TiledHalo(CachedHalo):
    """Runs the local steps of the network tile by tile, with the result of the whole picture.

    A tile is processed as if it were a small picture, in a window with a margin. What the zeros at the window's edges
    spoil is cut away from step to step, by as much as each one looks around a pixel.

    Of a clip that is there as a whole, each tile goes through all of it before the next one begins, so that what has to
    be remembered from pass to pass exists for one tile at a time. No gradients.

    Args:
        tiling: What is cut, and how.
        neighbors: What lies around the picture; default nothing. Tiles ask them once, for all that they look at.
        goes_on: The clip arrives in chunks, as for `CachedHalo`: then all tiles' memories are kept.
    """

    def __init__(self, tiling: Tiling, neighbors: Neighbors | None = None, *, streaming: bool = False) -> None:
        super().__init__(neighbors)
        self.tiling = tiling
        self._streaming = streaming
        self._parts: dict[str, CachedHalo] = {}

    def run_global(self, stage: StageFunction, x: Tensor) -> Tensor:
        """Run a stage on whole frames, a few latents at a time."""
        assert not needs_plain_ops(), "tiles take no gradients"
        return self._on_whole_frames("stage", (LocalStage(stage, reach=0, values=0, temporal=True),), x, 1, 1)

    def run_local(self, steps: Sequence[LocalStage], x: Tensor) -> Tensor:
        """Run the steps that the tiling names tile by tile, those before and after them on whole frames."""
        assert not needs_plain_ops(), "tiles take no gradients"
        first, last = self.tiling.first, self.tiling.last
        lengths = [frames_per_latent(steps, place) for place in (0, first, last, len(steps))]
        x = self._on_whole_frames("before", steps[:first], x, *lengths[:2])
        x = self._tile_by_tile(steps[first:last], x, pixels_per_latent(steps, last), *lengths[1:3])
        return self._on_whole_frames("after", steps[last:], x, *lengths[2:])

    @property
    def cached_bytes(self) -> int:
        return sum(part.cached_bytes for part in self._parts.values())

    def _on_whole_frames(self, name: str, steps: Sequence[LocalStage], x: Tensor, length: int, becomes: int) -> Tensor:
        if not steps:
            return x
        passage = _Passage(x.shape[2], self._at(name), length, becomes, self.tiling.latents_per_pass)
        halo, result = self._part(name, passage, Workspace(recycle=False), self.neighbors), None
        for before, after in representative_passes(passage, x):
            part = halo.run_local(steps, x[:, :, before])
            result = _room(part, passage.result, *part.shape[3:]) if result is None else result
            result[:, :, after] = part
            del part
            _advance(halo)
        assert result is not None
        return result

    def _tile_by_tile(self, steps: Sequence[LocalStage], x: Tensor, cell: int, length: int, becomes: int) -> Tensor:
        if not steps:
            return x
        height, width = (size_after(steps, size) for size in x.shape[3:])
        # From here on what neighbors hold counts as part of the picture.
        x, known = self.neighbors.around(x, receptive_margin(steps))
        down, right = size_after(steps, known.top), size_after(steps, known.left)
        workspace, result = Workspace(recycle=False), None
        rows = [span.moved(down) for span in split_evenly(height, self.tiling.rows, cell)]
        columns = [span.moved(right) for span in split_evenly(width, self.tiling.columns, cell)]
        places: Iterable[tuple[Span, Span]] = product(rows, columns)
        estimator = estimator_of(x)
        if estimator is not None:  # one stands for all
            places = [largest_tile(steps, x.shape[3], x.shape[4], rows, columns)]
        for index, place in enumerate(Box(*spans) for spans in places):
            name, tile = f"{_TILE}{index}", place.moved(-down, -right)
            windows = boxes_of(steps, x.shape[3], x.shape[4], place)
            cropping = [_cropping(step, *pair) for step, pair in zip(steps, pairwise(windows), strict=True)]
            passage = _Passage(x.shape[2], self._at(name), length, becomes, self.tiling.latents_per_pass)
            halo = self._part(name, passage, workspace, None)
            for before, after in representative_passes(passage, x):
                part = halo.run_local(cropping, x[:, :, before, windows[0].rows.slice, windows[0].columns.slice])
                result = _room(part, passage.result, height, width) if result is None else result
                result[:, :, after, tile.rows.slice, tile.columns.slice] = part
                del part
                if estimator is not None and self._streaming and halo.at_start:
                    estimator.add((len(rows) * len(columns) - 1) * halo.cached_bytes)
                _advance(halo)
            del halo
        assert result is not None
        return result

    def _at(self, name: str) -> bool:
        return name not in self._parts or self._parts[name].at_start

    def _part(self, name: str, passage: "_Passage", workspace: Workspace, neighbors: Neighbors | None) -> Halo:
        if not self._streaming:
            halo = Halo(neighbors) if len(passage) == 1 else CachedHalo(neighbors)
            halo.workspace = workspace
            return halo
        if name not in self._parts:
            self._parts[name] = CachedHalo(neighbors)
            self._parts[name].workspace = self.workspace
        return self._parts[name]

    def state_dict(self, model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
        """Return what all parts remember, each under its name, and how pictures are cut, which goes on as it was."""
        assert self._streaming, "only a clip that arrives in chunks has a state"
        state = {f"{prefix}{_TILING}": torch.tensor(astuple(self.tiling), device="cpu")}
        for name, part in self._parts.items():
            state |= part.state_dict(model, f"{prefix}{name}.")
        return state

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
        entries = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
        for name in {entry.partition(".")[0] for entry in entries} - {_TILING}:
            # Parts of whole frames ask neighbors, as in a pass.
            self._parts[name] = CachedHalo(None if name.startswith(_TILE) else self.neighbors)
            self._parts[name].workspace = self.workspace
            self._parts[name].load_state_dict(model, state, f"{prefix}{name}.")
        self._started = True


def tiling_of(state: Mapping[str, Tensor], prefix: str = "") -> Tiling | None:
    """Return how pictures are cut in the stream that had this state; None if they are not."""
    tiling = state.get(f"{prefix}{_TILING}")
    return None if tiling is None else Tiling(*tiling.tolist())


class _Passage:
    """The passes in which frames go through a part of the network: the clip's first alone, then some at a time.

    Args:
        frames: How many there are.
        at_start: Whether the first of them is the clip's first.
        length: How many of them a latent has.
        becomes: How many of the result it has.
        latents: How many latents' frames go together.

    Yields:
        Which frames go, and which of the result they become.
    """

    def __init__(self, frames: int, at_start: bool, length: int, becomes: int, latents: int) -> None:
        first = 1 if at_start and frames > 0 else 0
        assert (frames - first) % length == 0, (frames, first, length)
        self._passes = [(slice(0, 1), slice(0, 1))] if first else []
        for start in range(0, (frames - first) // length, latents):
            stop = min(start + latents, (frames - first) // length)
            self._passes.append(
                (
                    slice(first + start * length, first + stop * length),
                    slice(first + start * becomes, first + stop * becomes),
                )
            )
        self.result = first + (frames - first) // length * becomes

    def __len__(self) -> int:
        return len(self._passes)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        return iter(self._passes)


def _cropping(step: LocalStage, window: Box, following: Box) -> LocalStage:
    """Return a step that takes `window` of the picture and gives what lies in `following`."""
    rows, columns = (
        slice(after.start - origin, after.stop - origin)
        for after, origin in (
            (after, before.start * step.upscale // step.downscale)
            for before, after in zip(window, following, strict=True)
        )
    )

    def run(x: Tensor, halo: Halo, /) -> Tensor:
        x = step.run(x, halo)
        cropped = x[..., rows, columns]
        if cropped.shape == x.shape:
            return x
        # A copy, so that what is not needed any more is not held, and what follows is dense.
        copy = halo.workspace.empty(cropped.shape, like=x)
        copy.copy_(cropped)
        return copy

    return replace(step, run=run)


def _room(part: Tensor, frames: int, height: int, width: int) -> Tensor:
    return Workspace.empty_persistent((*part.shape[:2], frames, height, width), like=part)


def _advance(halo: Halo) -> None:
    if isinstance(halo, CachedHalo):
        halo.advance()
