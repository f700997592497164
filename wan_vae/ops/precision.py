"""Float32 convolutions on NVIDIA GPUs: IEEE arithmetic, or TF32 where it is asked for.

PyTorch lets cuDNN round the operands of float32 convolutions to TF32, whose 10 bits of mantissa are those of float16.
Its switch is global: setting it for a pass would change what other threads compute meanwhile. Convolutions therefore
say in each call what they allow. With gradients, graphs and autocast, PyTorch's switch decides.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.ops import is_traced

_tf32 = ContextVar("tf32", default=False)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 convolutions of this thread round to TF32 inside this context, or not."""
    if is_traced():  # no compiler follows a ContextVar, and in graphs PyTorch's switch decides
        yield
        return
    token = _tf32.set(allowed)
    try:
        yield
    finally:
        _tf32.reset(token)


def tf32_allowed() -> bool:
    """Whether float32 convolutions may round to TF32 here."""
    return _tf32.get()


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """PyTorch's convolution of images (N, C, H, W) or clips (B, C, T, H, W), in the precision of this context."""
    operands = (x, weight, bias)
    differentiable = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in operands)
    if not _is_on_gpu(x) or x.dtype != torch.float32 or differentiable or is_traced():
        function = F.conv2d if x.dim() == 4 else F.conv3d
        return function(x, weight, bias, tuple(stride), tuple(padding), groups=groups)
    dimensions, cudnn = x.dim() - 2, torch.backends.cudnn
    deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    transposed = False, [0] * dimensions
    flags = cudnn.benchmark, deterministic, cudnn.enabled, _tf32.get()
    return torch._convolution(x, weight, bias, stride, padding, [1] * dimensions, *transposed, groups, *flags)


def _is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` in the precision of this context."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        assert not isinstance(self.padding, str)
        return convolution(input, weight, bias, self.stride, self.padding, self.groups)


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` in the precision of this context."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        assert not isinstance(self.padding, str)
        return convolution(input, weight, bias, self.stride, self.padding, self.groups)
