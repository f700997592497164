"""Optimizers (AdamW, Muon), the learning rate schedule and the exponential moving average of the weights."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wan_vae.training.recipe import Recipe
from wan_vae.vae import WanVAE

MOMENTUM = 0.95


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step, counted from 0 over the whole run: `warmed_cosine` in each stage."""
    index, step = recipe.stage_at(step)
    stage = recipe.stages[index]
    return stage.learning_rate * warmed_cosine(step, stage.steps, stage.warmup, stage.final_rate)


def warmed_cosine(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    """Return the share of the highest learning rate: linear warm-up, then a cosine (Loshchilov and Hutter 2017).

    Args:
        step: From 0.
        steps: Of the whole training.
        warmup: Steps of them that rise.
        final: The share at the end.
    """
    if step < warmup:
        return (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return final + (1 - final) * cosine


class EMA:
    """Exponential moving average of a VAE's weights.

    After n steps the decay is at most (1 + n) / (10 + n), so that the initial weights do not dominate short runs.
    """

    def __init__(self, vae: WanVAE, decay: float) -> None:
        self.model = copy.deepcopy(vae).eval().requires_grad_(False)  # has the averaged weights
        self._decay = decay

    @torch.no_grad()
    def update(self, vae: WanVAE, step: int) -> None:
        """Average in the weights of `vae` after the optimizer step numbered `step`, from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        current: dict[str, Tensor] = vae.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name], 1 - decay)
            else:
                average.copy_(current[name])


def make_optimizer(model: nn.Module, kind: str, betas: tuple[float, float], weight_decay: float) -> Optimizer:
    """Return an optimizer, "adamw" or "muon", for the weights of `model` that require gradients.

    Its learning rate is to be set before every step. `betas` are those of AdamW, which also trains the weights that
    Muon is not meant for.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if kind == "adamw":
        return torch.optim.AdamW(trained.values(), lr=0.0, betas=betas, weight_decay=weight_decay)
    groups: list[dict[str, Any]] = [{"params": [], "muon": False}, {"params": [], "muon": True}]
    for name, weight in trained.items():
        groups[_is_inner_convolution(name, weight)]["params"].append(weight)
    return Muon(groups, lr=0.0, betas=betas, weight_decay=weight_decay)


def _is_inner_convolution(name: str, weight: Tensor) -> bool:
    # Input and output layers train better with AdamW (Jordan et al. 2024).
    outer = ("conv_in", "head.conv", "quant_conv")
    return weight.ndim >= 4 and min(weight.shape[:2]) > 1 and not any(part in name for part in outer)


class Muon(torch.optim.AdamW):
    """AdamW for the first of two parameter groups, Muon (Jordan et al. 2024) for the second.

    Muon takes a weight as a matrix with a row per output channel, and replaces the singular values of its momentum by
    values near 1. Learning rates are those of AdamW (Liu et al. 2025, https://arxiv.org/abs/2502.16982).
    """

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
                # AdamW.__setstate__ requires a step in every state.
                state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(weight)}
            state["step"] += 1
            momentum: Tensor = state["momentum"]
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            matrix = weight.grad.lerp(momentum, MOMENTUM).flatten(1)
            # Gives updates the RMS of AdamW's at the same learning rate (Liu et al. 2025, equation 4).
            scale = 0.2 * max(matrix.shape) ** 0.5
            weight.mul_(1 - muon["lr"] * muon["weight_decay"])
            weight.add_(orthogonalized(matrix).view_as(weight), alpha=-muon["lr"] * scale)
        return loss


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return a matrix with the same singular vectors and singular values near 1, by Newton-Schulz iterations."""
    # This quintic's coefficients trade accuracy for speed: five iterations bring all singular values between 0.7 and
    # 1.2 (Jordan et al. 2024).
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    # Each iteration multiplies x from the left by a polynomial in x x^T. These commute, so only their product is
    # iterated, which is many times smaller than x.
    square = x @ x.T
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(5):
        current = product @ square @ product
        product = (a * identity + b * current + c * current @ current) @ product
    x = product @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
