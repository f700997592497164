"""What decides how an operation runs."""

import torch

MIN_NORM = 1e-12
"""The smallest norm that RMS norms divide by, as in Wan's `F.normalize`."""


def needs_plain_ops() -> bool:
    """Whether only PyTorch's out-of-place operations may run: under autograd, tracing, compilation or autocast."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.is_grad_enabled() or traced or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
