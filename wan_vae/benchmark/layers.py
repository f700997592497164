"""Where the time of a call goes, layer by layer."""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wan_vae.benchmark.clock import synchronize, timed

OUTSIDE = "(outside all layers)"


@dataclass(frozen=True)
class Spent:
    """Time that went to one kind of thing.

    Attributes:
        name: What.
        seconds: In that alone, not in what it called.
        calls: How often it was called.
    """

    name: str
    seconds: float
    calls: int


def time_by_layer(network: nn.Module, call: Callable[[], object], device: torch.device) -> list[Spent]:
    """Run a call and return the time spent in each layer of a network, most first.

    Layers are named by their path. Blocks in a row count as one, `*` for their number, and a module that calls others
    counts for what it does itself. The device is waited for before and after each layer, so that the whole takes longer
    than it does otherwise.
    """
    clock = _LayerClock(device)
    handles = [
        handle
        for path, module in network.named_modules()
        if path
        for handle in (
            module.register_forward_pre_hook(clock.entering(_shortened(path))),
            module.register_forward_hook(clock.leaving),
        )
    ]
    try:
        _, total = timed(call, device)
    finally:
        for handle in handles:
            handle.remove()
    spent = [Spent(name, clock.seconds[name], clock.calls[name]) for name in clock.seconds]
    outside = Spent(OUTSIDE, total - sum(each.seconds for each in spent), 1)
    return sorted([*spent, outside], key=lambda each: -each.seconds)


def _shortened(path: str) -> str:
    return re.sub(r"\b(blocks|norms|convs)\.\d+", r"\1.*", path)


@dataclass
class _Visit:
    name: str
    start: float
    in_others: float = 0.0


class _LayerClock:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._under_way: list[_Visit] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    def entering(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._under_way.append(_Visit(name, self._now()))

        return enter

    def leaving(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        now = self._now()
        visit = self._under_way.pop()
        self.seconds[visit.name] += now - visit.start - visit.in_others
        self.calls[visit.name] += 1
        if self._under_way:
            self._under_way[-1].in_others += now - visit.start
