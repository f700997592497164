"""CUDA graphs: with small pictures, launching kernels takes longer than running them."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wan_vae.errors import first_line

_capture_lock = threading.Lock()
_given_up: set[torch.device] = set()


def can_capture(device: torch.device) -> bool:
    """Whether functions of tensors on a device may be captured: on a GPU where no capture has failed."""
    return device.type == "cuda" and device not in _given_up


def give_up(device: torch.device, error: Exception) -> None:
    """Log that a capture has failed, and try none on this device in this process any more."""
    if device not in _given_up:
        message = f"No CUDA graph can be captured, so small pictures run slower: {first_line(error)}"
        logging.getLogger("wan_vae").warning(message)
    _given_up.add(device)


class CudaGraph:
    """A function of one GPU tensor, captured once and replayed for tensors of the same shape.

    All other memory that the function reads and writes must keep its address. The function must have run before, so
    that no kernel is compiled or measured during the capture.

    Args:
        function: Captured, not run: the first result comes from the first call.
        x: Gives shape, dtype and device.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with torch.inference_mode(False):  # so that it can be overwritten in any mode
            self._x = torch.empty_like(x)
        self._graph = torch.cuda.CUDAGraph()
        make_stream: Any = torch.cuda.Stream  # untyped in some releases
        # PyTorch's default capture stream belongs to the device of its first use, which may be another one.
        stream = make_stream(x.device)
        with (
            _capture_lock,
            torch.cuda.device(x.device),
            torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self._result = function(self._x)

    def supports(self, x: Tensor) -> bool:
        """Whether `x` has the captured shape."""
        return x.shape == self._x.shape

    def __call__(self, x: Tensor) -> Tensor:
        """Return the result for `x`, in new memory."""
        self._x.copy_(x)
        with torch.cuda.device(x.device):
            self._graph.replay()
        # The next replay overwrites `_result`.
        return self._result.clone()
