"""Parts with their neighbors compute what the whole picture gives."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_config, small_configs
from tests.shards.grids import grids
from tests.shards.workers import Workers
from wan_vae import VAEConfig
from wan_vae.config import BLOCK_KINDS
from wan_vae.model.halo import Halo, StreamHalo
from wan_vae.shards.grid import Grid
from wan_vae.shards.neighbors import ShardNeighbors
from wan_vae.shards.peers import Peers


def encoded_part(group: dist.ProcessGroup, config: VAEConfig, grid: Grid, plan: tuple[int, ...] | None) -> np.ndarray:
    peers = Peers(range(group.size()), group)
    frames = 1 + config.temporal_compression * 2 if plan is None else sum(plan)
    part = grid.cut(_video(config, grid, frames), peers.index, config.spatial_compression)
    return _passed(random_vae(config).moments, part, ShardNeighbors(grid, peers), plan)


def decoded_part(group: dist.ProcessGroup, config: VAEConfig, grid: Grid, plan: tuple[int, ...] | None) -> np.ndarray:
    peers = Peers(range(group.size()), group)
    part = grid.cut(_latents(config, grid, 3 if plan is None else sum(plan)), peers.index, 1)
    return _passed(random_vae(config).pixels, part, ShardNeighbors(grid, peers), plan)


def _passed(network, part, neighbors, plan):
    if plan is None:
        return network(part, Halo(neighbors)).numpy()
    halo, results = StreamHalo(neighbors), []
    for chunk in part.split(plan, dim=2):
        results.append(network(chunk, halo))
        halo.advance()
    return torch.cat(results, dim=2).numpy()


def _video(config: VAEConfig, grid: Grid, frames: int) -> torch.Tensor:
    side = config.spatial_compression
    return random_video(frames, side * sum(grid.heights), side * sum(grid.widths))


def _latents(config: VAEConfig, grid: Grid, frames: int) -> torch.Tensor:
    return random_latents(config, frames, sum(grid.heights), sum(grid.widths))


def _joined(parts: list[np.ndarray], grid: Grid) -> torch.Tensor:
    tensors = [torch.from_numpy(part) for part in parts]
    rows = [torch.cat(tensors[row * grid.columns : (row + 1) * grid.columns], dim=4) for row in range(grid.rows)]
    return torch.cat(rows, dim=3)


@settings(max_examples=30)
@given(st.data(), small_configs(), grids())
def test_parts_encode_like_the_whole_picture(workers: Workers, data, config: VAEConfig, grid: Grid) -> None:
    groups = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=3))
    unit = config.temporal_compression
    plan = None if groups is None else (1 + unit * groups[0], *(unit * max(1, group) for group in groups[1:]))
    whole = random_vae(config).moments(_video(config, grid, 1 + 2 * unit if plan is None else sum(plan)), Halo())
    parts = workers.run(grid.rows * grid.columns, encoded_part, config, grid, plan)
    assert relative_difference(_joined(parts, grid), whole) <= 1e-10


@settings(max_examples=30)
@given(st.data(), small_configs(), grids())
def test_parts_decode_like_the_whole_picture(workers: Workers, data, config: VAEConfig, grid: Grid) -> None:
    plan = data.draw(st.none() | st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple))
    whole = random_vae(config).pixels(_latents(config, grid, 3 if plan is None else sum(plan)), Halo())
    parts = workers.run(grid.rows * grid.columns, decoded_part, config, grid, plan)
    assert relative_difference(_joined(parts, grid), whole) <= 1e-10
