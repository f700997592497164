import math

import pytest
import torch

from experiments.residual_blocks.networks import Autoencoder, Network
from experiments.residual_blocks.settings import Ablation
from experiments.residual_blocks.training import constant_psnr, spike, validation_psnr
from wan_vae.training.optim import warmed_cosine


def test_the_rate_rises_then_falls_to_nothing() -> None:
    shares = [warmed_cosine(step, 101, 5) for step in range(102)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5] == 1
    assert shares[53] == pytest.approx(0.5)
    assert shares[101] == pytest.approx(0)


def test_psnr_of_a_network_that_paints_gray(quick: Ablation) -> None:
    model = Autoencoder(Network(kind="wan", units=1, width=4, common=quick.network)).train()
    pictures = torch.full((1, 3, 1, 8, 8), 0.2)  # a tenth of the range away from gray: 20 dB
    for value in (0.0, float("nan")):
        torch.nn.init.constant_(model.head.conv.weight, value)
        torch.nn.init.constant_(model.head.conv.bias, value)
        assert validation_psnr(model, pictures) == pytest.approx(20, abs=1e-3)
    assert model.training


def test_psnr_of_the_mean_color() -> None:
    pictures = torch.zeros(2, 3, 1, 4, 4)
    pictures[0, 0], pictures[1, 0] = 0.2, -0.2
    # A third of the values is a tenth of the range away from the mean, the others are not.
    assert constant_psnr(pictures) == pytest.approx(20 + 10 * math.log10(3), abs=1e-3)


def test_a_spike_is_the_largest_norm_relative_to_the_median() -> None:
    assert spike([1.0, 2.0, 7.0]) == 3.5
    assert spike([1.0, math.nan, 7.0]) == spike([0.0, 0.0, 7.0]) == math.inf
