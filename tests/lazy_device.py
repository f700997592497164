"""A device whose streams do nothing until somebody waits for them, so that whoever forgets to wait gets no value."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from wan_vae.io import frames


class LazyStream:
    """Takes the place of `torch.cuda.Stream`."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []
        self._done = 0

    def enqueue(self, step: Callable[[], None]) -> None:
        self._steps.append(step)

    def wait_stream(self, other: "LazyStream") -> None:
        self.enqueue(other.record_event().synchronize)

    def record_event(self) -> "LazyEvent":
        return LazyEvent(self, len(self._steps))

    def run(self, until: int) -> None:
        while self._done < until:
            self._done += 1
            self._steps[self._done - 1]()


class LazyEvent:
    """Takes the place of `torch.cuda.Event`."""

    def __init__(self, stream: LazyStream, position: int) -> None:
        self._stream = stream
        self._position = position

    def synchronize(self) -> None:
        self._stream.run(self._position)


class LazyTensor:
    """A number on a device or on its way there, known once the stream got that far."""

    def __init__(self, device: "LazyDevice", value: int | None = None) -> None:
        self._device = device
        self.value = value
        self.made_on = device.current
        self.used_on: list[LazyStream] = []

    def pin_memory(self) -> "LazyTensor":
        return LazyTensor(self._device, self.value)

    def to(self, device: object, non_blocking: bool) -> "LazyTensor":
        assert non_blocking
        return self.plus(0)

    def plus(self, number: int) -> "LazyTensor":
        result = LazyTensor(self._device)

        def add() -> None:
            assert self.value is not None, "this ran before what it depends on"
            result.value = self.value + number

        self._device.current.enqueue(add)
        return result

    def record_stream(self, stream: LazyStream) -> None:
        self.used_on.append(stream)


class LazyDevice:
    """Stands behind `torch.cuda` for as long as a test runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = self.computing = LazyStream()
        monkeypatch.setattr(frames, "_stream", lambda device: LazyStream())
        monkeypatch.setattr(torch.cuda, "stream", self._stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)

    @contextmanager
    def _stream(self, stream: LazyStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before
