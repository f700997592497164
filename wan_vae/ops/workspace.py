"""Memory for the large tensors of a pass, used again for the next one."""

import ctypes
import math
import weakref

import torch
from torch import Tensor

from wan_vae.ops.recording import recorded


class Workspace:
    """Gives out tensors whose memory comes back by itself when the last view of them is gone.

    On a CPU, fresh memory is slow: the kernel fills each page with zeros at its first touch, which for the tensors of
    one pass through the network takes up to a third of the time, and a C library gives large ones back to the kernel as
    soon as they are freed. A GPU's memory is kept by PyTorch itself.

    Whoever runs a clip through the network owns one; when it is dropped, all memory goes back.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a tensor (B, C, T, H, W) with undefined values, of the dtype and on the device of `like`.

        It is stored channels-last; where gradients are recorded, it is any new tensor.
        """
        if recorded():
            return like.new_empty(shape)
        if like.device.type != "cpu":
            return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
        batch, channels, frames, height, width = shape
        values = self._values(math.prod(shape), like.dtype)
        return values.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)

    def _values(self, count: int, dtype: torch.dtype) -> Tensor:
        size = count * dtype.itemsize
        if size == 0:
            return torch.empty(0, dtype=dtype, device="cpu")
        block = self._block(size)
        # The tensor below holds on to this object, and with it ends the loan.
        loan = (ctypes.c_char * size).from_address(block.data_ptr())
        weakref.finalize(loan, self._free.append, block).atexit = False
        return torch.frombuffer(loan, dtype=dtype)

    def _block(self, size: int) -> Tensor:
        self._free.sort(key=Tensor.numel)
        for index, block in enumerate(self._free):
            if len(block) >= size:
                return self._free.pop(index)
        if self._free:
            # Too small for this, so it makes room: what is held stays at what is needed at one time.
            self._free.pop()
        return torch.empty(size, dtype=torch.uint8, device="cpu")
