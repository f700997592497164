"""Triton kernels for NVIDIA GPUs, and whether they can run here."""

import importlib.util
import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.errors import first_line

_PROBED = (1, 96, 2, 3, 5)  # a width of Wan's, and pixels that fill no tile
_TOLERANCE = 1e-5  # of float32 values around 1
_verdicts: dict[torch.device, bool] = {}


def supports_triton(x: Tensor) -> bool:
    """Whether the Triton kernels can read and write `x` (B, C, T, H, W): on an NVIDIA GPU, channels contiguous."""
    if not x.is_cuda or torch.version.hip is not None or x.dtype == torch.float64:
        return False
    return (x.stride(1) == 1 or x.shape[1] == 1) and _runs_on(x.device)


def expects_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `supports_triton` should hold of tensors that a dry run stands for; a GPU elsewhere is taken to have it.

    Nothing is computed: that a compiler fails is only known after the first pass.
    """
    if device.type != "cuda" or torch.version.hip is not None or dtype == torch.float64:
        return False
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        return False
    return all(verdict for known, verdict in _verdicts.items() if device.index in (None, known.index))


def _runs_on(device: torch.device) -> bool:
    """Whether Triton is installed, finds a compiler and computes right on the GPU; logs a warning if not."""
    if device not in _verdicts:
        try:
            _verdicts[device] = _probe(device)
        except torch.cuda.OutOfMemoryError:  # says nothing about the next call
            return False
    return _verdicts[device]


def _probe(device: torch.device) -> bool:
    try:
        from wan_vae.ops.triton.norm_silu import norm_silu

        # Whatever torch's defaults are.
        x = torch.linspace(-2, 3, math.prod(_PROBED), dtype=torch.float32, device="cpu").reshape(_PROBED)
        gamma = torch.linspace(0.5, 1.5, _PROBED[1], dtype=torch.float32, device="cpu")
        on_gpu = x.to(device, memory_format=torch.channels_last_3d)
        result = norm_silu(on_gpu, gamma.to(device), torch.empty_like(on_gpu)).cpu()
        scale = _PROBED[1] ** 0.5 * gamma.view(-1, 1, 1, 1)
        error = (result - F.silu(x / x.norm(dim=1, keepdim=True) * scale)).abs().max().item()
        if not error <= _TOLERANCE:
            raise ArithmeticError(f"a norm is wrong by {error:.1e}")
    except torch.cuda.OutOfMemoryError:
        raise
    # Compilers and drivers raise errors of many classes; PyTorch's kernels compute the same, more slowly.
    except Exception as error:
        message = f"Triton's kernels cannot run on {device}, so PyTorch's do: {first_line(error)}"
        logging.getLogger("wan_vae").warning(message)
        return False
    return True
