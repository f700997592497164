"""Synthetic tasks for a few blocks: to pass on their input, and to compute a chain of functions."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.residual_blocks.networks import Network, through
from experiments.residual_blocks.settings import Frozen, StackSection
from wan_vae.training.optim import warmed_cosine

Task = Literal["identity", "last", "every"]
BATCH, SIDE, SMOOTHNESS = 8, 8, 2
CHAIN, CHAIN_CHANNELS = 3, 8


class StackResult(Frozen):
    """Errors on fresh data, each relative to the data's own deviation from its mean: 1 is no better than a constant.

    Attributes:
        start: In training mode before the first step (running statistics mean nothing yet).
        end: In eval mode after the last.
    """

    start: float
    end: float


class StackJob(Frozen):
    """A stack of blocks to fit to a task.

    Attributes:
        network: Whose blocks are taken.
        task: `identity`: pass on the input, without any other layer. `last`: the last of a chain of fixed random
            functions of the input. `every`: the input and all values of the chain, which a network has to compute
            early and still know at its end. Both chains between two linear layers.
        stack: How it learns.
        learning_rate: Of Adam.
        seed: Of weights, data and the random functions.
    """

    network: Network
    task: Task
    stack: StackSection
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """What a person would call it."""
        return f"{self.task}-{self.network.kind}-{self.learning_rate:g}-seed{self.seed}"

    def run(self) -> StackResult:
        """Fit; the result depends on this job's fields alone."""
        generator = torch.Generator().manual_seed(self.seed)
        channels = self.network.width if self.task == "identity" else CHAIN_CHANNELS
        kernels = [torch.randn(channels, channels, 1, 3, 3, generator=generator) for _ in range(CHAIN)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = _Stack(self.network, self.task)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        fresh = _smooth(channels, generator)
        wanted = _target(fresh, self.task, kernels)
        with torch.no_grad():
            start = _relative_error(model(fresh), wanted)
        for step in range(self.stack.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * warmed_cosine(step, self.stack.steps, warmup=1)
            x = _smooth(channels, generator)
            optimizer.zero_grad()
            torch.autograd.backward(F.mse_loss(model(x), _target(x, self.task, kernels)))
            optimizer.step()
        model.eval()
        with torch.no_grad():
            return StackResult(start=start, end=_relative_error(model(fresh), wanted))


class _Stack(nn.Module):
    def __init__(self, network: Network, task: Task) -> None:
        super().__init__()
        outputs = CHAIN_CHANNELS * (CHAIN + 1 if task == "every" else 1)
        linear = task != "identity"
        self.first = nn.Conv3d(CHAIN_CHANNELS, network.width, 1) if linear else nn.Identity()
        self.blocks = network.blocks()
        self.last = nn.Conv3d(network.width, outputs, 1) if linear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(through(self.blocks, self.first(x)))
        return out


def _target(x: Tensor, task: Task, kernels: list[Tensor]) -> Tensor:
    if task == "identity":
        return x
    values = [x]
    for kernel in kernels:
        y = F.conv3d(values[-1], kernel / kernel[0].numel() ** 0.5, padding=(0, 1, 1))
        values.append(torch.sin(3 * y))
    return torch.cat(values, dim=1) if task == "every" else values[-1]


def _smooth(channels: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(BATCH, channels, 1, SIDE // SMOOTHNESS, SIDE // SMOOTHNESS, generator=generator)
    x = F.interpolate(coarse, size=(1, SIDE, SIDE), mode="trilinear", align_corners=True)
    # Post-activation blocks end in a ReLU and see what another one let through: they are asked nothing impossible.
    return F.relu(x)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    error = (found - expected).square().mean() / (expected - expected.mean()).square().mean()
    return error.sqrt().nan_to_num(torch.inf).item()
