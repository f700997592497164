"""Whether somebody looks at every step of the arithmetic."""

import torch


def recorded() -> bool:
    """Whether every step must be one of PyTorch's own, that overwrites nothing.

    Gradients or a graph are recorded, or autocast is to choose the dtype of each step.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.is_grad_enabled() or traced or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
