import pytest
import torch

from tests.helpers import small_config
from wan_vae import WanVAE
from wan_vae.benchmark.measure import count_work
from wan_vae.config import load_config
from wan_vae.sharding.grid import best_grid
from wan_vae.sharding.scaling import Look, bytes_sent, decoder_looks, encoder_looks, scaling


def test_one_device_computes_all_and_sends_nothing() -> None:
    config = small_config()
    (alone,) = scaling(config, encodes=False, frames=9, height=8, width=12, devices=[1], dtype=torch.float64)
    with torch.device("meta"):
        vae = WanVAE(config).eval().requires_grad_(False)
        work = count_work(lambda: vae.decode(torch.empty(1, config.latent_channels, 5, 4, 6)))
    assert (alone.flops, alone.sent, alone.result) == (work.flops, 0, 0)


def test_the_largest_part_counts() -> None:
    config = small_config()
    one, three = scaling(config, encodes=True, frames=3, height=4, width=8, devices=[1, 3])
    assert (three.grid.heights, three.grid.widths) == ((2,), (1, 1, 2))
    assert three.flops == one.flops / 2
    # To the one or two beside it, of a picture of 2x4 latents with 3 channels and 2 frames, in bfloat16.
    assert three.result == 2 * (2 * 2 * 3 * 2) * 2
    assert three.balance(1e12) == pytest.approx(three.sent / three.flops * 1e12)


def test_an_edge_by_hand() -> None:
    grid = best_grid(2, 5, 8)
    # Five rows of 2 pixels a latent, one column of them, 7 channels, 3 frames, 8 bytes.
    assert bytes_sent([Look(channels=7, frames=3, scale=2)], grid, 0, itemsize=8) == 5 * 2 * 7 * 3 * 8
    # A key and a value for each of 5 x 4 latents.
    assert bytes_sent([Look(7, 3, 1, reach=None)], grid, 0, itemsize=8) == 2 * 20 * 7 * 3 * 8


def test_wan_has_as_many_layers_that_look_around_as_it_has_convolutions_that_do() -> None:
    # 3x3(x3) convolutions and the attention, counted in Wan's own files.
    config = load_config("wan2.1")
    assert len(list(encoder_looks(config, 81))) == 1 + 4 * 4 + 3 + 5 + 1
    assert len(list(decoder_looks(config, 21))) == 1 + 5 + 4 * 6 + 3 + 1
