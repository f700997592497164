"""The stages that encoder and decoder share: a run of blocks, the middle, and the head."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wan_vae.config import VAEConfig
from wan_vae.model.blocks import AttentionBlock
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d, NormSiLU
from wan_vae.model.residual_blocks import residual_block


class Blocks(nn.ModuleList):
    """Residual blocks one after the other, the first of which changes the width.

    With `recompute` set, activations inside a block are computed again in the backward pass rather than kept.
    """

    def __init__(self, in_channels: int, out_channels: int, count: int, config: VAEConfig) -> None:
        widths = [in_channels] + [out_channels] * count
        super().__init__(residual_block(widths[index], out_channels, config) for index in range(count))
        self.recompute = False

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        for block in self:
            if self.recompute and halo.repeatable and torch.is_grad_enabled():
                x = checkpoint(block, x, halo, use_reentrant=False, **_contexts(block))
            else:
                x = block(x, halo)
        return x


def _contexts(block: nn.Module) -> dict[str, Any]:
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
    if not norms or torch.compiler.is_compiling():  # the compiler knows what is done twice
        return {}
    return {"context_fn": lambda: (nullcontext(), _statistics_kept(norms))}


@contextmanager
def _statistics_kept(norms: list[nn.BatchNorm3d]) -> Iterator[None]:
    # Otherwise a batch would count twice in the running statistics, when it passes and when it is recomputed.
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, config: VAEConfig) -> None:
        super().__init__()
        self.block1 = residual_block(channels, channels, config)
        self.attention = AttentionBlock(channels)
        self.block2 = residual_block(channels, channels, config)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        return self.block2(self.attention(self.block1(x, halo), halo), halo)


class Head(nn.Module):
    """norm, SiLU and the last 3x3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = NormSiLU(in_channels)
        self.conv = CausalConv3d(in_channels, out_channels)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        return self.conv(self.conv.surrounded(x, halo, self.norm), halo)
