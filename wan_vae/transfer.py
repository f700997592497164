"""Tensors on their way to the device and back, beside what it computes.

On CUDA, copies go through pinned memory on streams of their own, and the host waits for the chunk before the last
alone: while it writes that, the device computes the next. Elsewhere tensors are handed on, moved if need be.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def to_device(chunks: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the host's tensors on a device; on CUDA, each while its copy is still under way.

    What is computed with them by the current stream is computed after the copy.
    """
    if device.type != "cuda":
        yield from (chunk.to(device) for chunk in chunks)
        return
    beside = _stream(device)
    for chunk in chunks:
        with torch.cuda.stream(beside):
            # The pinned memory may be forgotten here: torch gives it to others only when it was copied, just as it does
            # with the device's memory once the recorded stream is done with it.
            moved = chunk.pin_memory().to(device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(beside)
        moved.record_stream(computing)
        yield moved


def to_host(groups: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yield a device's tensors on the host; on CUDA, each group once the next one is asked of the device."""
    if device.type != "cuda":
        yield from (tuple(tensor.cpu() for tensor in group) for group in groups)
        return
    for copies, copied in one_behind(_fetched(groups, device)):
        copied.synchronize()
        yield copies


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after the next one was taken."""
    held: deque[T] = deque()
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.popleft()
    yield from held


def _fetched(
    groups: Iterable[tuple[Tensor, ...]], device: torch.device
) -> Iterator[tuple[tuple[Tensor, ...], torch.cuda.Event]]:
    """Yield copies on the host that are under way, and the event after which they are whole."""
    beside = _stream(device)
    for group in groups:
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            # Into pinned memory: that is where torch puts what it need not wait for.
            copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in group)
        for tensor in group:
            tensor.record_stream(beside)
        yield copies, beside.record_event()


def _stream(device: torch.device) -> torch.cuda.Stream:
    make_stream: Any = torch.cuda.Stream  # untyped in some releases
    return make_stream(device)
