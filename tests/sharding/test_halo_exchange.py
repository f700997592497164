"""Parts with their neighbors compute what the whole picture gives."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_configs
from tests.sharding.comm_volume import bytes_sent, decoder_looks, encoder_looks
from tests.sharding.grids import grids
from tests.sharding.workers import Workers
from wan_vae import VAEConfig
from wan_vae.model.halo import CachedHalo, Halo, Padding
from wan_vae.sharding.grid import Grid
from wan_vae.sharding.halo_exchange import HaloExchange
from wan_vae.sharding.process_group import ProcessGroup

Plan = tuple[int, ...]
Pass = Callable[[torch.Tensor, Halo], torch.Tensor]


def encoded_part(group: dist.ProcessGroup, config: VAEConfig, grid: Grid, plan: tuple[int, ...] | None) -> np.ndarray:
    ranks = ProcessGroup(range(group.size()), group)
    frames = 1 + config.temporal_compression * 2 if plan is None else sum(plan)
    part = grid.cut(_video(config, grid, frames), ranks.rank, config.spatial_compression)
    return _passed(random_vae(config).moments, part, HaloExchange(grid, ranks), plan), ranks.bytes_sent


def decoded_part(group: dist.ProcessGroup, config: VAEConfig, grid: Grid, plan: tuple[int, ...] | None) -> np.ndarray:
    ranks = ProcessGroup(range(group.size()), group)
    part = grid.cut(_latents(config, grid, 3 if plan is None else sum(plan)), ranks.rank, 1)
    return _passed(random_vae(config).pixels, part, HaloExchange(grid, ranks), plan), ranks.bytes_sent


def _passed(network: Pass, part: torch.Tensor, neighbors: HaloExchange, plan: Plan | None) -> np.ndarray:
    if plan is None:
        return network(part, Halo(neighbors)).numpy()
    halo, results = CachedHalo(neighbors), []
    for chunk in part.split(plan, dim=2):
        results.append(network(chunk, halo))
        halo.advance()
    return torch.cat(results, dim=2).numpy()


def _video(config: VAEConfig, grid: Grid, frames: int) -> torch.Tensor:
    side = config.spatial_compression
    return random_video(frames, side * sum(grid.heights), side * sum(grid.widths))


def _latents(config: VAEConfig, grid: Grid, frames: int) -> torch.Tensor:
    return random_latents(config, frames, sum(grid.heights), sum(grid.widths))


def joined(parts: Sequence[np.ndarray], grid: Grid) -> torch.Tensor:
    tensors = [torch.from_numpy(part) for part in parts]
    rows = [torch.cat(tensors[row * grid.columns : (row + 1) * grid.columns], dim=4) for row in range(grid.rows)]
    return torch.cat(rows, dim=3)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.data(), small_configs(), grids())
def test_parts_encode_like_the_whole_picture(
    workers: Workers, data: st.DataObject, config: VAEConfig, grid: Grid
) -> None:
    unit = config.temporal_compression
    groups = data.draw(st.none() | st.lists(st.integers(1, 3), min_size=1, max_size=3))
    plan = None if groups is None else (1 + unit * (groups[0] - 1), *(unit * group for group in groups[1:]))
    frames = 1 + 2 * unit if plan is None else sum(plan)
    whole = random_vae(config).moments(_video(config, grid, frames), Halo())
    parts, sent = zip(*workers.run(grid.rows * grid.columns, encoded_part, config, grid, plan), strict=True)
    assert relative_difference(joined(parts, grid), whole) <= 1e-10
    assert sent == tuple(
        bytes_sent(encoder_looks(config, frames), grid, part, itemsize=8) for part in range(len(parts))
    )


@settings(max_examples=20)
@given(st.data(), small_configs(), grids())
def test_parts_decode_like_the_whole_picture(
    workers: Workers, data: st.DataObject, config: VAEConfig, grid: Grid
) -> None:
    plan = data.draw(st.none() | st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple))
    latents = 3 if plan is None else sum(plan)
    whole = random_vae(config).pixels(_latents(config, grid, latents), Halo())
    parts, sent = zip(*workers.run(grid.rows * grid.columns, decoded_part, config, grid, plan), strict=True)
    assert relative_difference(joined(parts, grid), whole) <= 1e-10
    assert sent == tuple(
        bytes_sent(decoder_looks(config, latents), grid, part, itemsize=8) for part in range(len(parts))
    )


def edges_around(group: dist.ProcessGroup, grid: Grid) -> np.ndarray:
    ranks = ProcessGroup(range(group.size()), group)
    neighbors = HaloExchange(grid, ranks)
    whole = torch.arange(float(sum(grid.heights) * sum(grid.widths))).view(1, 1, 1, sum(grid.heights), -1) + 1
    reach = Padding(top=1, bottom=1, left=1, right=1)
    (out,), zeros = Halo(neighbors).pad(torch.nn.Identity(), grid.cut(whole, ranks.rank, 1), reach)
    return F.pad(out, (zeros.left, zeros.right, zeros.top, zeros.bottom)).numpy()


@given(grids())
def test_halo_pad_of_a_part_returns_the_pixels_around_it(workers: Workers, grid: Grid) -> None:
    whole = torch.arange(float(sum(grid.heights) * sum(grid.widths))).view(sum(grid.heights), -1) + 1
    padded = F.pad(whole, (1, 1, 1, 1))
    for part, out in enumerate(workers.run(grid.rows * grid.columns, edges_around, grid)):
        row, column = grid.place(part)
        top, left = sum(grid.heights[:row]), sum(grid.widths[:column])
        expected = padded[top : top + grid.heights[row] + 2, left : left + grid.widths[column] + 2]
        assert torch.equal(torch.from_numpy(out)[0, 0, 0], expected)


def far_around(group: dist.ProcessGroup, grid: Grid, scale: int, margin: int) -> tuple[np.ndarray, Padding]:
    ranks = ProcessGroup(range(group.size()), group)
    x, added = HaloExchange(grid, ranks).around(grid.cut(_numbered(grid, scale), ranks.rank, scale), margin)
    return x.numpy(), added


def _numbered(grid: Grid, scale: int) -> torch.Tensor:
    height, width = scale * sum(grid.heights), scale * sum(grid.widths)
    return torch.arange(2.0 * 3 * height * width).view(1, 2, 3, height, width)


@given(grids(), st.integers(1, 2), st.integers(0, 7))
def test_around_with_a_wide_margin_passes_the_next_part(workers: Workers, grid: Grid, scale: int, margin: int) -> None:
    whole = _numbered(grid, scale)
    for part, (x, added) in enumerate(workers.run(grid.rows * grid.columns, far_around, grid, scale, margin)):
        rows, columns = grid.area(part, scale)
        assert added.top == min(margin, rows.start)
        assert added.right == min(margin, whole.shape[4] - columns.stop)
        window = (
            slice(rows.start - added.top, rows.stop + added.bottom),
            slice(columns.start - added.left, columns.stop + added.right),
        )
        assert torch.equal(torch.from_numpy(x), whole[(..., *window)])
