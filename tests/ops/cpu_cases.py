"""What the tests of the compiled kernels have in common."""

import os
import shutil
import sys

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

COMPILER = os.environ.get("CXX", "").split(" ")[0] or next(filter(shutil.which, ("g++", "c++", "clang++")), None)
needs_compiler = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="NO C++ COMPILER: the compiled kernels are not tested"
)
sizes = st.integers(1, 11)
channel_counts = st.sampled_from([1, 3, 5, 16, 17, 31, 48, 70])
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


def channels_last(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random values in a slice of a larger buffer, which has what lies around it as NaN."""
    batch, channels, frames, height, width = shape
    buffer = torch.full((batch, frames + 3, height + 1, width + 2, channels), torch.nan, dtype=dtype)
    part = buffer[:, 2:-1, 1:, 1:-1].permute(0, 4, 1, 2, 3)
    part.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    return part


def around(part: Tensor) -> Tensor:
    """How many values of the buffer behind a slice are not NaN."""
    base = part._base
    assert base is not None
    return base.isnan().logical_not().sum()


def relative_error(result: Tensor, reference: Tensor) -> float:
    return float((result.double() - reference).norm() / reference.norm())
