"""Parts of a picture that are processed in tiles compute what the whole picture gives, and send what is counted."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_configs
from tests.inference.test_tiling import tilings
from tests.sharding.comm_volume import bytes_sent, decoder_looks, encoder_looks
from tests.sharding.grids import HALVES, grids
from tests.sharding.test_halo_exchange import joined
from tests.sharding.workers import Workers
from wan_vae import VAEConfig
from wan_vae.inference.tiling import TiledHalo, Tiling
from wan_vae.model.halo import Halo
from wan_vae.sharding.grid import Grid
from wan_vae.sharding.halo_exchange import HaloExchange
from wan_vae.sharding.process_group import ProcessGroup


def video_of(config: VAEConfig, grid: Grid, latents: int) -> torch.Tensor:
    side = config.spatial_compression
    frames = 1 + config.temporal_compression * (latents - 1)
    return random_video(frames, side * sum(grid.heights), side * sum(grid.widths))


def latents_of(config: VAEConfig, grid: Grid, latents: int) -> torch.Tensor:
    return random_latents(config, latents, sum(grid.heights), sum(grid.widths))


def coded_part(
    group: dist.ProcessGroup,
    config: VAEConfig,
    grid: Grid,
    latents: int,
    first: int,
    tiling: Tiling,
    encodes: bool,
    streaming: bool,
) -> tuple[np.ndarray, int]:
    vae, ranks = random_vae(config), ProcessGroup(range(group.size()), group)
    whole, scale, unit = latents_of(config, grid, latents), 1, 1
    if encodes:
        whole, scale, unit = video_of(config, grid, latents), config.spatial_compression, config.temporal_compression
    part = grid.cut(whole, ranks.rank, scale)
    halo = TiledHalo(tiling, HaloExchange(grid, ranks), streaming=streaming)
    results = []
    for chunk in part.tensor_split([1 + unit * (first - 1)] if streaming else [], dim=2):
        if chunk.shape[2] > 0:
            results.append(vae.moments(chunk, halo) if encodes else vae.pixels(chunk, halo))
            halo.advance()
    return torch.cat(results, dim=2).numpy(), ranks.bytes_sent


def check_tiled_parts(
    workers: Workers,
    data: st.DataObject,
    config: VAEConfig,
    grid: Grid,
    latents: int,
    encodes: bool,
    streaming: bool,
) -> None:
    vae, first = random_vae(config), data.draw(st.integers(1, latents))
    tiling = data.draw(tilings(len((vae.encoder if encodes else vae.decoder).local_stages())))
    job = (coded_part, config, grid, latents, first, tiling, encodes, streaming)
    parts, sent = zip(*workers.run(grid.rows * grid.columns, *job), strict=True)
    if encodes:
        whole = vae.moments(video_of(config, grid, latents), Halo())
        looks = list(encoder_looks(config, 1 + config.temporal_compression * (latents - 1), tiling))
    else:
        whole = vae.pixels(latents_of(config, grid, latents), Halo())
        looks = list(decoder_looks(config, latents, tiling))
    assert relative_difference(joined(parts, grid), whole) <= 1e-10
    assert sent == tuple(bytes_sent(looks, grid, part, itemsize=8) for part in range(len(parts)))


@settings(max_examples=3)
@given(st.data(), small_configs(), grids(HALVES, largest=2), st.integers(1, 2), st.booleans())
@pytest.mark.parametrize("encodes", [True, False])
def test_tiled_halves_equal_the_whole_picture(
    workers: Workers,
    encodes: bool,
    data: st.DataObject,
    config: VAEConfig,
    grid: Grid,
    latents: int,
    streaming: bool,
) -> None:
    check_tiled_parts(workers, data, config, grid, latents, encodes, streaming)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.data(), small_configs(), grids(), st.integers(1, 3), st.booleans())
@pytest.mark.parametrize("encodes", [True, False])
def test_tiled_parts_equal_the_whole_picture(
    workers: Workers,
    encodes: bool,
    data: st.DataObject,
    config: VAEConfig,
    grid: Grid,
    latents: int,
    streaming: bool,
) -> None:
    check_tiled_parts(workers, data, config, grid, latents, encodes, streaming)
