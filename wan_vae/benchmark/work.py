"""How much there is to compute: what an implementation's convolutions and matrix products multiply, read and write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry


@dataclass(frozen=True)
class Work:
    """What one call computes.

    Attributes:
        flops: Multiplications and additions of convolutions and matrix products (a multiply-add is two), with the zeros
            that are laid around their inputs. Norms, activations and copies are not counted.
        values: Numbers that those read and write, each tensor once a call of theirs: weights, inputs, outputs. Even if
            all else were fused into them, that much would pass through memory or caches.
    """

    flops: int
    values: int


def work_of(call: Callable[[], object]) -> Work:
    """Count what a call computes.

    On tensors of the meta device, the call goes through the same layers as a real one and computes nothing. Where a
    layer has a faster way on some device, by fewer operations even, what is counted is the plain way.
    """
    with _ValueCounter() as values, FlopCounterMode(display=False) as flops:
        call()
    return Work(flops.get_total_flops(), values.total)


class _ValueCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += sum(value.numel() for value in (*args, result) if isinstance(value, Tensor))
        return result
