"""Triton kernels for NVIDIA GPUs, and whether they can run here."""

import logging
from functools import cache

import torch
from torch import Tensor


def supports_triton(x: Tensor) -> bool:
    """Whether the Triton kernels can read and write `x` (B, C, T, H, W): on an NVIDIA GPU, channels contiguous."""
    if not x.is_cuda or torch.version.hip is not None or x.dtype == torch.float64:
        return False
    return (x.stride(1) == 1 or x.shape[1] == 1) and _runs_on(x.device)


@cache
def _runs_on(device: torch.device) -> bool:
    """Whether Triton is installed, finds a compiler and supports the GPU; logs a warning if not."""
    try:
        from wan_vae.ops.triton.norm_silu import norm_silu

        x = torch.ones(1, 16, 1, 1, 1, device=device)
        norm_silu(x, torch.ones(16, device=device), torch.empty_like(x)).sum().item()
    # Compilers and drivers raise errors of many classes; PyTorch's kernels compute the same, more slowly.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        logging.getLogger("wan_vae").warning(f"Triton's kernels cannot run on {device}, so PyTorch's do: {reason}")
        return False
    return True
