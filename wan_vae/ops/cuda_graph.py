"""CUDA graphs: with small pictures, launching kernels takes longer than running them.

Capturing takes as long as several passes. A stream that ends therefore leaves its graph to the next one with the same
model and shape, together with the caches whose addresses are in it; while a graph is lent, another stream captures its
own. Idle graphs are few, and end with their model.
"""

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from wan_vae.errors import first_line

_MOST_IDLE = 8  # graphs of all models
_MOST_IDLE_BYTES = 2**30
_capture_lock = threading.Lock()
_given_up: set[torch.device] = set()
_graphs: "WeakSet[CudaGraph]" = WeakSet()


def can_capture(device: torch.device) -> bool:
    """Whether functions of tensors on a device may be captured: on a GPU where no capture has failed."""
    return device.type == "cuda" and device not in _given_up


def give_up(device: torch.device, error: Exception) -> None:
    """Log that a capture has failed, and try none on this device in this process any more."""
    if device not in _given_up:
        # The end of a capture that has failed raises an error of its own.
        cause = error.__context__ if isinstance(error.__context__, Exception) else error
        message = f"No CUDA graph can be captured, so small pictures run slower: {first_line(cause)}"
        logging.getLogger("wan_vae").warning(message)
    _given_up.add(device)


class CudaGraph:
    """A function of one GPU tensor, captured once and replayed for tensors of the same shape.

    All other memory that the function reads and writes must keep its address. The function must have run before, so
    that no kernel is compiled or measured during the capture.

    Args:
        function: Captured, not run: the first result comes from the first call.
        x: Gives shape, dtype and device.

    Attributes:
        nbytes: Bytes that are kept for tensors inside the function, which nothing else can use.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with torch.inference_mode(False):  # so that it can be overwritten in any mode
            self._x = torch.empty_like(x)
        self._graph = torch.cuda.CUDAGraph()
        make_stream: Any = torch.cuda.Stream  # untyped in some releases
        # PyTorch's default capture stream belongs to the device of its first use, which may be another one.
        stream = make_stream(x.device)
        # Where a capture fails, `torch.cuda.graph` leaves its stream the current one.
        restored: Any = torch.cuda.stream(torch.cuda.current_stream(x.device))
        with _capture_lock, torch.cuda.device(x.device), restored:
            torch.cuda.empty_cache()  # as a capture begins with, or the difference would be less than what it takes
            before = torch.cuda.memory_reserved()
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._result = function(self._x)
            self.nbytes = max(0, torch.cuda.memory_reserved() - before)
        self._device = x.device
        _graphs.add(self)

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


def captured_bytes(device: torch.device) -> int:
    """Return the bytes that graphs keep on a device, which count as free to PyTorch's allocator and are not."""
    on_device = (graph for graph in list(_graphs) if graph._device.type == device.type)
    return sum(graph.nbytes for graph in on_device if device.index in (None, graph._device.index))


@dataclass(eq=False)
class CapturedPass:
    """A graph, together with what it reads and writes besides the weights.

    Attributes:
        key: Identifies the function, the input's shape and everything else that the capture depends on.
        graph: The graph.
        state: The object whose tensors the graph reads and overwrites.
        constants: Other tensors that the graph reads.
        nbytes: Bytes of all of it.
        turn: When it was used last.
    """

    key: Hashable
    graph: CudaGraph
    state: Any
    constants: object
    nbytes: int
    turn: int = 0


_idle: WeakKeyDictionary[object, list[CapturedPass]] = WeakKeyDictionary()
_idle_lock = threading.RLock()  # reentrant, because garbage collection may end a stream at any time
_turns = count()


def borrow(owner: object, key: Hashable) -> CapturedPass | None:
    """Take an idle pass with this key away from those of a model; it is the caller's alone."""
    with _idle_lock:
        passes = _idle.get(owner, [])
        found = next((each for each in reversed(passes) if each.key == key), None)
        if found is not None:
            passes.remove(found)
        return found


def give_back(owner: object, captured: CapturedPass) -> None:
    """Leave a pass to the next stream of a model, and drop those used least recently where there are too many."""
    with _idle_lock:
        captured.turn = next(_turns)
        _idle.setdefault(owner, []).append(captured)
        newest = sorted((each for passes in _idle.values() for each in passes), key=lambda each: -each.turn)
        total = 0
        for index, each in enumerate(newest):
            total += each.nbytes
            if index >= _MOST_IDLE or total > _MOST_IDLE_BYTES:
                for passes in _idle.values():
                    passes[:] = [one for one in passes if one is not each]


def drop_idle() -> None:
    """Free the memory of all graphs that no stream uses."""
    with _idle_lock:
        _idle.clear()
