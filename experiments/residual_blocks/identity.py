"""How easily a few blocks learn to pass on their input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.residual_blocks.networks import Network
from experiments.residual_blocks.settings import Frozen, IdentitySection
from experiments.residual_blocks.training import warmed_cosine
from wan_vae.model.blocks import residual_block
from wan_vae.model.halo import Halo

BATCH, FRAMES, SIDE, SMOOTHNESS = 4, 5, 16, 4


class IdentityResult(Frozen):
    """Errors on fresh data, each relative to the data's own deviation from its mean: 1 is no better than a constant.

    Attributes:
        start: In training mode before the first step (running statistics mean nothing yet).
        end: In eval mode after the last.
    """

    start: float
    end: float


class IdentityJob(Frozen):
    """A stack of blocks to fit to the identity.

    Attributes:
        network: Whose kind of block and width are taken; depth does not matter.
        identity: How long the stack is and how it learns.
        learning_rate: Of Adam.
        seed: Of weights and data.
    """

    network: Network
    identity: IdentitySection
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """What a person would call it."""
        return f"identity-{self.network.kind}-{self.learning_rate:g}-seed{self.seed}"

    def run(self) -> IdentityResult:
        """Fit; the result depends on this job's fields alone."""
        steps, width = self.identity.steps, self.network.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            stack = nn.ModuleList(
                residual_block(width, width, self.network.config()) for _ in range(self.identity.blocks)
            )
        optimizer = torch.optim.Adam(stack.parameters(), fused=True)
        generator = torch.Generator().manual_seed(self.seed)
        fresh = _smooth(width, generator)
        with torch.no_grad():
            start = _relative_error(_through(stack, fresh), fresh)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * warmed_cosine(step, steps, warmup=1)
            x = _smooth(width, generator)
            optimizer.zero_grad()
            torch.autograd.backward(F.mse_loss(_through(stack, x), x))
            optimizer.step()
        stack.eval()
        with torch.no_grad():
            return IdentityResult(start=start, end=_relative_error(_through(stack, fresh), fresh))


def _smooth(channels: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(BATCH, channels, FRAMES // 2 + 1, SIDE // SMOOTHNESS, SIDE // SMOOTHNESS, generator=generator)
    x = F.interpolate(coarse, size=(FRAMES, SIDE, SIDE), mode="trilinear", align_corners=True)
    # Post-activation blocks end in a ReLU and see what another one let through: they are asked nothing impossible.
    return F.relu(x)


def _through(stack: nn.ModuleList, x: Tensor) -> Tensor:
    for block in stack:
        x = block(x, Halo())
    return x


def _relative_error(found: Tensor, expected: Tensor) -> float:
    error = (found - expected).square().mean() / (expected - expected.mean()).square().mean()
    return error.sqrt().item()
