import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.sharding_table import CountingTransport, dry_run, scaling
from tests.helpers import small_config, small_configs
from tests.sharding.comm_volume import Look, bytes_sent, decoder_looks, encoder_looks
from tests.sharding.grids import grids
from wan_vae import VAEConfig, WanVAE
from wan_vae.benchmark.measure import count_work
from wan_vae.config import load_config
from wan_vae.sharding.grid import Grid, best_grid


def meta_vae(config: VAEConfig) -> WanVAE:
    with torch.device("meta"):
        return WanVAE(config).double().eval().requires_grad_(False)


def test_scaling_of_one_device_computes_all_and_sends_nothing() -> None:
    config = small_config()
    (alone,) = scaling(config, encodes=False, frames=9, height=8, width=12, devices=[1], dtype=torch.float64)
    vae = meta_vae(config)
    latents = torch.empty(1, config.latent_channels, 5, 4, 6, dtype=torch.float64, device="meta")
    work = count_work(lambda: vae.decode(latents, latents_per_pass=1))
    assert (alone.flops, alone.sent, alone.result) == (work.flops, 0, 0)


def test_scaling_is_that_of_the_largest_part() -> None:
    config = small_config()
    one, three = scaling(config, encodes=True, frames=3, height=4, width=8, devices=[1, 3])
    assert (three.grid.heights, three.grid.widths) == ((2,), (1, 1, 2))
    assert three.flops == one.flops / 2
    # To both neighbors: 2x2 of the 2x4 latents, 3 channels, 2 frames, in bfloat16.
    assert three.result == 2 * (2 * 2 * 3 * 2) * 2
    assert three.balance(1e12) == pytest.approx(three.sent / three.flops * 1e12)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.data(), small_configs(), grids(), st.integers(1, 4))
def test_dry_run_sends_what_the_architecture_implies(
    data: st.DataObject, config: VAEConfig, grid: Grid, latents: int
) -> None:
    vae, frames = meta_vae(config), 1 + config.temporal_compression * (latents - 1)
    part = data.draw(st.integers(0, grid.rows * grid.columns - 1))
    _, encoding = dry_run(vae, grid, part, encodes=True, frames=frames)
    _, decoding = dry_run(vae, grid, part, encodes=False, frames=frames)
    assert encoding == bytes_sent(encoder_looks(config, frames), grid, part, itemsize=8)
    assert decoding == bytes_sent(decoder_looks(config, latents), grid, part, itemsize=8)


def test_counting_transport_counts_the_bytes_sent() -> None:
    transport = CountingTransport(2, 0)
    transport.start([(1, torch.zeros(3, dtype=torch.float64))], [(1, torch.zeros(7))])
    assert transport.bytes_sent == 24


def test_bytes_sent_by_hand() -> None:
    grid = best_grid(2, 5, 8)
    # Five rows of 2 pixels per latent, one column of them, 7 channels, 3 frames, 8 bytes.
    assert bytes_sent([Look(channels=7, frames=3, scale=2)], grid, 0, itemsize=8) == 5 * 2 * 7 * 3 * 8
    # A key and a value for each of 5 x 4 latents.
    assert bytes_sent([Look(7, 3, 1, reach=None)], grid, 0, itemsize=8) == 2 * 20 * 7 * 3 * 8


def test_looks_of_wan_are_its_convolutions_and_attention() -> None:
    # 3x3(x3) convolutions and the attention, counted in Wan's own files.
    config = load_config("wan2.1")
    assert len(list(encoder_looks(config, 81))) == 1 + 4 * 4 + 3 + 5 + 1
    assert len(list(decoder_looks(config, 21))) == 1 + 5 + 4 * 6 + 3 + 1
