"""The network's hot operations: plain PyTorch for training and tracing, faster implementations for inference.

The optimizations, when each applies, and where it is:

1. Compiled convolutions (`cpu/`): C++ kernels with 3x3 taps by Winograd's algorithm, or in bfloat16 by AMX. On a CPU,
   for sizes where they are faster than oneDNN, if there is a C++ compiler: `ensure_kernels` builds them at the first
   inference.
2. Frames read in place (`conv3d.accepts_frame_list`): a causal convolution takes cached and new frames without joining
   them, and implicit zero padding. With the compiled kernels.
3. Fused upsampling (`conv3d.convolve_upsampled`): nearest-neighbor upsampling and the convolution after it as one, with
   25 products per tile instead of 36, or 4 taps instead of 9. With the compiled kernels.
4. Fused norm and SiLU (`norm_silu.norm_silu_into`): one pass over memory, to where the next convolution reads. With the
   compiled kernels or Triton; elsewhere on a CPU, a few rows at a time, which stay in the cache.
5. Bias and residual with one rounding (`triton/bias_residual.py`): one pass over memory after a cuDNN convolution, or
   none, where the norm that follows adds the bias (`conv3d.adds_bias_in_another_pass`). On NVIDIA GPUs with Triton.
6. Triton convolutions (`triton/conv3d*.py`), with bias and residual fused. On NVIDIA GPUs, for the shapes where
   `autotune.measuring` found them faster than cuDNN.
7. Attention in linear memory (`attention.py`): a few queries at a time where PyTorch has no fused kernel, and on
   NVIDIA GPUs where `autotune.measuring` found that faster.
8. Caching host allocator (`workspace.py`): the memory of intermediate tensors is reused within a pass, between passes
   and between clips. On a CPU; `empty_cache` returns it to the system.
9. CUDA graphs (`cuda_graph.py`): a pass is captured once per model and shape, and replayed. On devices of type
   cuda, where launching kernels takes longer than running them.
10. Float32 is IEEE (`precision.py`): cuDNN rounds to TF32 only where the dtype is "tf32".
11. Memory estimates (`memory_estimator.py`): a dry run on the meta device, for choosing tiles and chunk sizes.
12. Weights in cuDNN's order (`conv3d.lay_out_weights`): stored so once, not copied at every call. On devices
   of type cuda, ROCm's included.

All of them apply while no gradients, tangents, graphs or autocast are recorded (`needs_plain_ops`); otherwise every
operation is PyTorch's.
"""

import torch
from torch.autograd import forward_ad

MIN_NORM = 1e-12
"""The smallest norm that RMS norms divide by, as in Wan's `F.normalize`."""


def needs_plain_ops() -> bool:
    """Whether only PyTorch's out-of-place operations may run: under autograd, or where `is_traced`."""
    return torch.is_grad_enabled() or is_traced()


def is_traced() -> bool:
    """Whether operations are recorded or changed by PyTorch: in tracing, compilation, autocast or forward-mode AD."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return True
    return forward_ad._current_level >= 0
