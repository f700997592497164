"""What happens at each block of a network: how much gradient arrives there, and how far its branch is from nothing."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from experiments.residual_blocks.settings import Frozen
from wan_vae.model.blocks import BottleneckBlock, DenseBlock, PlainBlock, PreActivationBlock, ResidualBlock, ResNetBlock

_BLOCKS = (PlainBlock, ResNetBlock, BottleneckBlock, PreActivationBlock, DenseBlock)
# What the shortcut is added to, where an activation follows the sum.
_BRANCH_ENDS = {ResNetBlock: "norm2", BottleneckBlock: "norm3"}
_SUMS = (ResidualBlock, PreActivationBlock)


class BlockProbe(Frozen):
    """What was measured at one block.

    Attributes:
        gradient: Root mean square of the loss's gradient by the block's output, where that is not zero: what a ReLU
            holds back passes nothing on, yet a norm that divides by nearly nothing gives it a huge gradient.
        identity_distance: Length of the residual branch relative to that of the shortcut it is added to (before the
            ReLU of post-activation blocks). For blocks without an added shortcut (plain, dense): length of output
            minus input relative to the input's, and None where they differ in width.
    """

    gradient: float
    identity_distance: float | None


def probe_blocks(network: nn.Module, loss: Callable[[Any], Tensor]) -> tuple[BlockProbe, ...]:
    """Measure every residual block of a network in the order in which they run.

    The network is left as it was: a copy is run, in the same mode.

    Args:
        network: What holds the blocks.
        loss: Runs the network it is given, once, and returns a scalar.
    """
    network = copy.deepcopy(network)
    network.zero_grad()
    watched: list[_Watched] = []
    for module in network.modules():
        if isinstance(module, _BLOCKS):
            _Watched(module, watched)
    torch.autograd.backward(loss(network))
    return tuple(block.probe() for block in watched)


class _Watched:
    def __init__(self, block: nn.Module, ran: list["_Watched"]) -> None:
        self._block = block
        self._ran = ran
        self._seen: dict[str, Tensor] = {}
        block.register_forward_hook(self._block_ran)
        if type(block) in _BRANCH_ENDS:
            block.get_submodule(_BRANCH_ENDS[type(block)]).register_forward_hook(self._keeping("branch"))
        if type(block) in (*_BRANCH_ENDS, *_SUMS):
            block.get_submodule("shortcut").register_forward_hook(self._keeping("shortcut"))

    def _block_ran(self, block: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        output.retain_grad()
        self._seen |= {"input": inputs[0].detach(), "output": output}
        self._ran.append(self)

    def _keeping(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._seen[name] = output.detach()

        return keep

    def probe(self) -> BlockProbe:
        output = self._seen["output"]
        assert output.grad is not None
        return BlockProbe(gradient=_rms(output.grad[output != 0]).item(), identity_distance=self._identity_distance())

    def _identity_distance(self) -> float | None:
        end = self._seen["output"].detach()
        if type(self._block) in (*_BRANCH_ENDS, *_SUMS):
            shortcut = self._seen["shortcut"]
            return (_rms(self._seen.get("branch", end - shortcut)) / _rms(shortcut)).item()
        start = self._seen["input"]
        return (_rms(end - start) / _rms(start)).item() if start.shape == end.shape else None


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
