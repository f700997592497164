"""Whether somebody looks at every step of the arithmetic."""

import torch


def recorded() -> bool:
    """Whether gradients are recorded or the compiler traces, so that nothing may be overwritten or handed around it."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()
