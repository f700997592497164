"""The exponential moving average of the weights."""

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A copy of a model whose weights follow the model's slowly.

    At first it follows faster, with a decay of (1 + n) / (10 + n) after n steps, so that short runs are not dominated
    by where they began.

    Args:
        model: What to follow.
        decay: Share of the average that a step keeps, in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def follow(self, model: nn.Module, steps: int) -> None:
        """Move towards `model` after its optimizer step number `steps`, counted from 0."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        current: dict[str, Tensor] = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name], 1 - decay)
            else:
                average.copy_(current[name])
