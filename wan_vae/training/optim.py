"""AdamW, and Muon, which learns the large convolutions in fewer steps.

The learning rate at every step.

The exponential moving average of the weights.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wan_vae.training.recipe import Recipe
from wan_vae.vae import WanVAE


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine from the stage's rate to its final share (Loshchilov and Hutter 2017).

    Args:
        recipe: Its stages.
        step: Optimizer step of the whole run, from 0.
    """
    index, step = recipe.stage_at(step)
    stage = recipe.stages[index]
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return stage.learning_rate * (stage.final_rate + (1 - stage.final_rate) * cosine)


class EMA:
    """A copy of a VAE whose weights follow the VAE's slowly.

    At first it follows faster, with a decay of (1 + n) / (10 + n) after n steps, so that short runs are not dominated
    by where they began.

    Args:
        vae: What to follow.
        decay: Share of the average that a step keeps, in the long run.

    Attributes:
        model: The copy, in eval mode.
    """

    def __init__(self, vae: WanVAE, decay: float) -> None:
        self.model = copy.deepcopy(vae).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def follow(self, vae: WanVAE, steps: int) -> None:
        """Move towards `vae` after its optimizer step number `steps`, counted from 0."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        current: dict[str, Tensor] = vae.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name], 1 - decay)
            else:
                average.copy_(current[name])


# Coefficients of the quintic iteration, by Jordan et al. 2024: they trade exactness for speed, and bring all singular
# values between 0.7 and 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
# Makes a step of Muon as long as one of AdamW with the same rate (Liu et al. 2025, equation 4).
ADAMW_LENGTH = 0.2


def make_optimizer(
    model: nn.Module, kind: str, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """Return an optimizer for all weights of `model` that have gradients; its rate is to be set at every step.

    Args:
        model: What it trains.
        kind: "adamw" or "muon".
        betas: Of AdamW.
        weight_decay: Of either.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if kind == "adamw":
        return torch.optim.AdamW(trained.values(), lr=0.0, betas=betas, weight_decay=weight_decay)
    inner = [weight for name, weight in trained.items() if _is_inner_convolution(name, weight)]
    chosen = {id(weight) for weight in inner}
    others = [weight for weight in trained.values() if id(weight) not in chosen]
    return Muon(inner, others, betas=betas, weight_decay=weight_decay)


def _is_inner_convolution(name: str, weight: Tensor) -> bool:
    # The first and the last layer, whose sides are pixels or latents, are known to do better with AdamW.
    outer = ("conv_in", "head.conv", "quant_conv")
    return weight.ndim >= 4 and min(weight.shape[:2]) > 1 and not any(part in name for part in outer)


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for some weights, as matrices of one row per output channel, and AdamW for the others.

    The momentum's singular values are all brought near 1, so that a step moves every direction of a layer alike. Rates
    are those of AdamW (Liu et al. 2025, https://arxiv.org/abs/2502.16982).

    Args:
        matrices: Weights of two or more dimensions that Muon trains.
        others: Weights that AdamW trains.
        betas: Of AdamW.
        weight_decay: Of both.
    """

    def __init__(
        self, matrices: Sequence[Tensor], others: Sequence[Tensor], *, betas: tuple[float, float], weight_decay: float
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(others), "muon": False},
            {"params": list(matrices), "muon": True},
        ]
        super().__init__(groups, lr=0.0, betas=betas, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        adamw, muon = self.param_groups
        self.param_groups = [adamw]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = [adamw, muon]
        for weight in muon["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                # AdamW looks for a step in all states when they are loaded.
                state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(weight)}
            state["step"] += 1
            momentum: Tensor = state["momentum"]
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            matrix = weight.grad.lerp(momentum, MOMENTUM).flatten(1)
            length = ADAMW_LENGTH * max(matrix.shape) ** 0.5
            weight.mul_(1 - muon["lr"] * muon["weight_decay"])
            weight.add_(orthogonalized(matrix).view_as(weight), alpha=-muon["lr"] * length)
        return loss


def orthogonalized(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near 1 by Newton-Schulz iterations, and keep its singular vectors."""
    a, b, c = QUINTIC
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    # Each iteration multiplies x from the left by a polynomial in x x^T. These commute, so it is enough to iterate on
    # their product, which is many times smaller than x.
    square = x @ x.T
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(ITERATIONS):
        current = product @ square @ product
        product = (a * identity + b * current + c * current @ current) @ product
    x = product @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
