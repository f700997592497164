"""What a network costs: parameters, multiply-adds, and convolutions one after the other."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from experiments.residual_blocks.networks import Network
from experiments.residual_blocks.settings import TrainingSection
from wan_vae.ops.memory_estimator import MemoryEstimator
from wan_vae.vae import WanVAE

Budget = Literal["parameters", "multiply_adds"]
BUDGETS: tuple[Budget, ...] = ("parameters", "multiply_adds")


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: Trained values.
        multiply_adds: Of convolutions and attention, to encode and decode one training clip.
        convolutions: On the longest path from the clip in to the clip out, the attentions' included.
    """

    parameters: int
    multiply_adds: int
    convolutions: int


@cache
def cost(network: Network, training: TrainingSection) -> Cost:
    """Count what one training clip costs."""
    with torch.device("meta"):
        vae = WanVAE(network.config()).eval().requires_grad_(False)
        clip = torch.zeros(1, 3, training.frames, training.crop, training.crop)
    convolutions = [
        name for name, module in vae.named_modules() if isinstance(module, (nn.Conv2d, nn.Conv3d)) and _on_path(name)
    ]
    return Cost(
        parameters=sum(parameter.numel() for parameter in vae.parameters()),
        multiply_adds=multiply_adds(vae, clip),
        convolutions=len(convolutions),
    )


def multiply_adds(vae: WanVAE, clip: Tensor) -> int:
    """Count what convolutions and attention multiply to reconstruct a clip (1, 3, T, H, W), zero padding included.

    The model and the clip are on the meta device.
    """
    # A GPU has no fast path with fewer operations.
    with MemoryEstimator(torch.device("cuda"), [*vae.parameters(), clip]) as estimator:
        vae(clip)
    return estimator.operations // 2


def _on_path(name: str) -> bool:
    return "shortcut" not in name.split(".")


def at_equal_cost(network: Network, budget: Budget, target: int, training: TrainingSection) -> Network:
    """Change a network's width so that it comes closest to a budget.

    Args:
        network: Its kind and depth are kept.
        budget: What is to be equal.
        target: How much of it.
        training: Clips' size.
    """

    def spent(width: int) -> int:
        found: int = getattr(cost(network.model_copy(update={"width": width}), training), budget)
        return found

    below, above = 2, 4
    while spent(above) < target:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if spent(middle) < target else (below, middle)
    width = min(below, above, key=lambda width: abs(spent(width) - target))
    return network.model_copy(update={"width": width})
