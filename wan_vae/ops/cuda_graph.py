"""CUDA graphs: with small pictures, a GPU waits for the next kernel's launch more than it computes."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_one_at_a_time = threading.Lock()


class CudaGraph:
    """A function of one tensor on a GPU, recorded once and replayed for tensors of the same shape.

    Whatever else the function reads and writes must stay at its place in memory, and it must have run before, so that
    nothing is compiled or chosen while it is recorded.

    Args:
        function: What to record. It is not run: the first result comes from the first call.
        x: The shape, dtype and device.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with torch.inference_mode(False):  # so that it can be overwritten in any mode
            self._x = torch.empty_like(x)
        self._graph = torch.cuda.CUDAGraph()
        make_stream: Any = torch.cuda.Stream  # untyped in some releases
        # A stream of this device: the one that PyTorch would take belongs to the device of its first use.
        beside = make_stream(x.device)
        with (
            _one_at_a_time,
            torch.cuda.device(x.device),
            torch.cuda.graph(self._graph, stream=beside, capture_error_mode="thread_local"),
        ):
            self._result = function(self._x)

    def serves(self, x: Tensor) -> bool:
        """Whether `x` is of the recorded shape."""
        return x.shape == self._x.shape

    def __call__(self, x: Tensor) -> Tensor:
        self._x.copy_(x)
        with torch.cuda.device(x.device):
            self._graph.replay()
        # The next replay overwrites its own result.
        return self._result.clone()
