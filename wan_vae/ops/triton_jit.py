"""What all our kernels need: Triton's decorator with a type, options, and the right GPU.

This and the other modules named `triton_*` need Triton, which only installations of PyTorch for a GPU bring along: they
are imported where a kernel is about to run.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

# Stated, for Triton is about to change what it does where nothing is stated, and warns of that.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


def jit(*, any_size: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Mark a function as a kernel, or as a part of one.

    Args:
        any_size: Integer parameters whose values may come and go without the kernel being compiled again.
    """
    return lambda function: triton.jit(do_not_specialize=list(any_size))(function)


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Have the kernels that are launched inside run where `x` is, rather than on the first GPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
