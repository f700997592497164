"""On blocks set by hand, what is measured is what was set."""

import copy

import pytest
import torch
from torch import Tensor, nn

from experiments.residual_blocks.probes import probe_blocks
from wan_vae.model.blocks import BottleneckBlock, DenseBlock, PlainBlock, PreActivationBlock, ResidualBlock, ResNetBlock
from wan_vae.model.halo import Halo


class Chain(nn.Module):
    """Blocks one after the other, each after the first seen through a factor of 2."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(2 * x if index else x, Halo())
        return x


def emptied(layer: nn.Module, bias: float = 0.0) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)


def ones() -> Tensor:
    return torch.ones(2, 4, 3, 5, 5)


@pytest.mark.parametrize("kind", [ResidualBlock, PreActivationBlock])
def test_gradients_of_empty_branches_pass_unchanged(kind: type[nn.Module]) -> None:
    chain = Chain(*(kind(4, 4, 0.0) for _ in range(3)))
    for block in chain.blocks:
        emptied(block.conv2)
    probes = probe_blocks(chain, lambda network: network(ones()).sum())
    assert [probe.gradient for probe in probes] == [4, 2, 1]
    assert [probe.identity_distance for probe in probes] == [0, 0, 0]


@pytest.mark.parametrize(
    ("block", "end"),
    [
        (ResidualBlock(4, 4, 0.0), "conv2"),
        (PreActivationBlock(4, 4, 0.0), "conv2"),
        (ResNetBlock(4, 4, 0.0), "norm2"),
        (BottleneckBlock(4, 4, 0.0, ratio=2), "norm3"),
    ],
)
def test_the_distance_is_the_branch_relative_to_the_shortcut(block: nn.Module, end: str) -> None:
    emptied(block.get_submodule(end), bias=-3.0)  # below zero, so that a ReLU after the sum would hide it
    [probe] = probe_blocks(Chain(block), lambda network: network(4 * ones()).sum())
    assert probe.identity_distance == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("block", "end"), [(PlainBlock(4, 4, 0.0), "conv2"), (DenseBlock(4, 4, 0.0, growth=2, layers=2), "transition")]
)
def test_without_a_shortcut_output_is_compared_to_input(block: nn.Module, end: str) -> None:
    emptied(block.get_submodule(end), bias=1.5)
    [probe] = probe_blocks(Chain(block), lambda network: network(ones()).sum())
    assert probe.identity_distance == pytest.approx(0.5)


def test_there_is_no_distance_between_different_widths() -> None:
    [probe] = probe_blocks(Chain(PlainBlock(4, 6, 0.0)), lambda network: network(ones()).sum())
    assert probe.identity_distance is None


def test_what_a_relu_holds_back_does_not_count() -> None:
    block = ResNetBlock(4, 4, 0.0)
    emptied(block.norm2)
    x = ones()
    x[:, :2] = -1  # becomes 0
    weights = torch.where(x > 0, 3.0, 1e12)
    [probe] = probe_blocks(Chain(block), lambda network: (network(x) * weights).sum())
    assert probe.gradient == 3


def test_the_network_is_left_as_it_was() -> None:
    chain = Chain(ResNetBlock(4, 4, 0.0))
    before = copy.deepcopy(chain.state_dict())
    probe_blocks(chain, lambda network: network(ones()).sum())
    assert all(torch.equal(value, before[name]) for name, value in chain.state_dict().items())
    assert all(parameter.grad is None for parameter in chain.parameters())
    assert chain.training
