import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.residual_blocks.networks import Autoencoder, Network, cost
from experiments.residual_blocks.settings import Ablation, Kind, load_ablation
from experiments.residual_blocks.tests.conftest import ROOT
from wan_vae.config import BLOCK_KINDS


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_layers_are_the_convolutions_on_the_path(kind: Kind, quick: Ablation) -> None:
    for units in (1, 3):
        network = Network(kind=kind, units=units, width=8, common=quick.network)
        found = [module for module in Autoencoder(network).modules() if isinstance(module, torch.nn.Conv3d)]
        assert len(found) == network.layers == 3 + 6 * units


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_multiply_adds_are_those_that_torch_counts(kind: Kind, quick: Ablation) -> None:
    network = Network(kind=kind, units=1, width=8, common=quick.network)
    model = Autoencoder(network).double().requires_grad_(False)  # in float64, convolutions that torch's counter knows
    with FlopCounterMode(display=False) as counter:
        picture = model(torch.zeros(1, 3, 1, 8, 8, dtype=torch.float64))
    assert picture.shape == (1, 3, 1, 8, 8)
    assert cost(network, quick.training).multiply_adds == counter.get_total_flops() / 2


def test_the_default_widths_make_parameters_about_equal() -> None:
    settings = load_ablation(ROOT / "experiments" / "residual_blocks" / "configs" / "default.yaml")
    for place, units in enumerate(settings.depths):
        found = [
            cost(Network(kind=kind, units=units, width=widths[place], common=settings.network), settings.training)
            for kind, widths in settings.network.widths.items()
        ]
        parameters = [one.parameters for one in found]
        assert max(parameters) < 1.1 * min(parameters)
