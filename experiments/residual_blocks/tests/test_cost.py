import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.residual_blocks.cost import BUDGETS, Budget, at_equal_cost, cost, multiply_adds
from experiments.residual_blocks.networks import Network
from experiments.residual_blocks.settings import Ablation
from wan_vae import WanVAE
from wan_vae.config import BLOCK_KINDS


def network(settings: Ablation, kind: str, *, blocks: int = 1, width: int = 4) -> Network:
    return Network(kind=kind, blocks_per_level=blocks, width=width, common=settings.network)


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_multiply_adds_are_those_that_torch_counts(kind: str, quick: Ablation) -> None:
    # In float64 the network takes convolutions that torch's counter knows; of attention on a CPU, not all releases know
    # the fused kernel.
    vae = WanVAE(network(quick, kind).config()).double().eval().requires_grad_(False)
    clip = torch.zeros(1, 3, 5, 8, 8, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        vae(clip)
    assert multiply_adds(vae.to("meta"), clip.to("meta")) == counter.get_total_flops() / 2


@pytest.mark.parametrize(("kind", "convolutions"), [("wan", 2), ("plain", 2), ("bottleneck", 3), ("dense", 3)])
def test_a_block_per_level_adds_four_blocks(kind: str, convolutions: int, quick: Ablation) -> None:
    shallow, deep = (cost(network(quick, kind, blocks=blocks), quick.training) for blocks in (1, 2))
    assert deep.convolutions - shallow.convolutions == 4 * convolutions
    assert deep.parameters > shallow.parameters


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_other_width_comes_closer_to_a_budget(budget: Budget, quick: Ablation) -> None:
    target = getattr(cost(network(quick, "resnet"), quick.training), budget)
    found = at_equal_cost(network(quick, "bottleneck"), budget, target, quick.training)
    away = {
        width: abs(getattr(cost(network(quick, "bottleneck", width=width), quick.training), budget) - target)
        for width in range(found.width - 2, found.width + 3)
    }
    assert min(away, key=away.__getitem__) == found.width


def test_a_network_at_its_own_cost_stays_as_it_is(quick: Ablation) -> None:
    same = network(quick, "resnet", width=6)
    assert at_equal_cost(same, "parameters", cost(same, quick.training).parameters, quick.training) == same
