"""Tiles never change the result."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import (
    chunk_plans,
    random_latents,
    random_vae,
    random_video,
    relative_difference,
    small_config,
    small_configs,
)
from wan_vae import UserError, VAEConfig
from wan_vae.inference.tiling import Box, Interval, TiledHalo, Tiling, boxes_of, largest_tile, split_evenly
from wan_vae.model.halo import Halo


@st.composite
def tilings(draw: st.DrawFn, steps: int) -> Tiling:
    first = draw(st.integers(0, steps))
    return Tiling(
        rows=draw(st.integers(1, 4)),
        columns=draw(st.integers(1, 4)),
        first=first,
        last=draw(st.integers(first, steps)),
        latents_per_pass=draw(st.integers(1, 3)),
    )


@settings(max_examples=40)
@given(st.data(), small_configs(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
@torch.no_grad()
def test_tiles_decode_like_the_whole(
    data: st.DataObject, config: VAEConfig, frames: int, height: int, width: int
) -> None:
    vae, latents = random_vae(config), random_latents(config, frames, height, width)
    tiling = data.draw(tilings(len(vae.decoder.local_stages())))
    assert relative_difference(vae.pixels(latents, TiledHalo(tiling)), vae.pixels(latents, Halo())) <= 1e-10


@settings(max_examples=40)
@given(st.data(), small_configs(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
@torch.no_grad()
def test_tiles_encode_like_the_whole(
    data: st.DataObject, config: VAEConfig, latents: int, height: int, width: int
) -> None:
    vae, side = random_vae(config), config.spatial_compression
    video = random_video(1 + config.temporal_compression * (latents - 1), height * side, width * side)
    tiling = data.draw(tilings(len(vae.encoder.local_stages())))
    assert relative_difference(vae.moments(video, TiledHalo(tiling)), vae.moments(video, Halo())) <= 1e-10


@settings(max_examples=40)
@given(st.data(), small_configs(), st.integers(1, 4))
@torch.no_grad()
def test_tiled_streams_give_the_whole_clip(data: st.DataObject, config: VAEConfig, latents: int) -> None:
    vae, side = random_vae(config), config.spatial_compression
    plan = [1, *data.draw(chunk_plans(latents - 1))]
    video = random_video(1 + config.temporal_compression * (latents - 1), 3 * side, 4 * side)
    lengths = [1, *(count * config.temporal_compression for count in plan[1:])]
    encoding = TiledHalo(data.draw(tilings(len(vae.encoder.local_stages()))), streaming=True)
    decoding = TiledHalo(data.draw(tilings(len(vae.decoder.local_stages()))), streaming=True)
    moments, pixels = [], []
    for count, frames in zip(plan, video.split(lengths, dim=2), strict=True):
        if count == 0:
            continue
        moments.append(vae.moments(frames, encoding))
        pixels.append(vae.pixels(moments[-1][:, : config.latent_channels], decoding))
        encoding.advance()
        decoding.advance()
    whole = vae.moments(video, Halo())
    assert relative_difference(torch.cat(moments, dim=2), whole) <= 1e-10
    decoded = vae.pixels(whole[:, : config.latent_channels], Halo())
    assert relative_difference(torch.cat(pixels, dim=2), decoded) <= 1e-10


@given(st.integers(1, 20), st.integers(1, 25), st.integers(1, 4))
def test_parts_are_even_and_cover_all(cells: int, count: int, multiple: int) -> None:
    parts = split_evenly(cells * multiple, count, multiple)
    lengths = [stop - start for start, stop in parts]
    assert [start for start, _ in parts] == [sum(lengths[:index]) for index in range(len(parts))]
    assert sum(lengths) == cells * multiple
    assert max(lengths) - min(lengths) <= multiple
    assert len(parts) == min(count, cells)


def test_windows_are_as_large_as_convolutions_ask() -> None:
    vae = random_vae(small_config())
    tile = Box(Interval(8, 16), Interval(0, 8))
    # Last step: one convolution; last level: 4 convolutions; first level: 4, and that of the doubled picture.
    rows = [window.rows for window in boxes_of(vae.decoder.local_stages(), 16, 16, tile)]
    assert rows == [Interval(0, 16), Interval(3, 21), Interval(7, 17), Interval(8, 16)]
    # Last level: 2 convolutions; first level: 2, and the one that halves, in whole pairs; the first convolution.
    rows = [window.rows for window in boxes_of(vae.encoder.local_stages(), 64, 64, tile)]
    assert rows == [Interval(7, 41), Interval(8, 40), Interval(6, 18), Interval(8, 16)]


def test_tiles_take_no_gradients() -> None:
    vae = random_vae(small_config())
    with pytest.raises(UserError, match="Tiles are computed without gradients"):
        vae.pixels(random_latents(vae.config, 1, 2, 2), TiledHalo(Tiling(2, 2, 0, 3)))


def test_the_largest_tile_is_the_one_with_the_largest_tensor() -> None:
    steps = random_vae(small_config()).decoder.local_stages()
    rows, columns = split_evenly(22, 4, 2), split_evenly(14, 3, 2)

    def largest_tensor(tile: Box) -> int:
        windows = boxes_of(steps, 11, 7, tile)[:-1]
        sizes = ([stop - start for start, stop in window] for window in windows)
        return max(step.channels * math.prod(size) for step, size in zip(steps, sizes, strict=True))

    found = largest_tile(steps, 11, 7, rows, columns)
    assert largest_tensor(found) == max(largest_tensor(Box(*spans)) for spans in product(rows, columns))
