"""The exponential moving average of the weights."""

import copy

import torch
from torch import Tensor

from wan_vae.vae import WanVAE


class MovingAverage:
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
