"""Whether our kernels in Triton can be had: PyTorch may lack Triton, and Triton a compiler or support for a GPU.

Whether somebody looks at every step of the arithmetic.
"""

import logging
from functools import cache

import torch
from torch import Tensor


def needs_plain_ops() -> bool:
    """Whether every step must be one of PyTorch's own, that overwrites nothing.

    Gradients or a graph are recorded, or autocast is to choose the dtype of each step.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.is_grad_enabled() or traced or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def supports_triton(x: Tensor) -> bool:
    """Whether our kernels can read and write `x` (B, C, T, H, W): on an NVIDIA GPU, channels side by side."""
    if not x.is_cuda or torch.version.hip is not None or x.dtype == torch.float64:
        return False
    return (x.stride(1) == 1 or x.shape[1] == 1) and _runs_on(x.device)


@cache
def _runs_on(device: torch.device) -> bool:
    try:
        from wan_vae.ops.triton.norm_silu import norm_silu

        x = torch.ones(1, 16, 1, 1, 1, device=device)
        norm_silu(x, torch.ones(16, device=device), torch.empty_like(x)).sum().item()
    # Compilers and drivers have errors of their own; PyTorch computes the same, if not as fast.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        logging.getLogger("wan_vae").warning(f"Triton's kernels cannot run on {device}, so PyTorch's do: {reason}")
        return False
    return True
