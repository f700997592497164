"""Reading ahead: threads decode the next clips while the network computes, within a bound of memory."""

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")
_END = object()
_NICENESS = 10


class ReadingAhead(Generic[T, Item]):
    """Runs `read(job)` for several jobs at a time, in threads. A context manager, which ends the threads.

    Iterating gives the jobs in their order, each with an iterator over the items that were read; one is used up before
    the next is asked for. Exceptions of `read` are raised where the items are taken.

    Attributes:
        waited: Seconds for which the caller waited for items.
    """

    def __init__(
        self, jobs: Iterable[T], read: Callable[[T], Generator[Item, None, None]], *, threads: int, held: int
    ) -> None:
        """Read `threads` jobs at a time, each at most `held` items ahead."""
        self._jobs, self._read, self._threads, self._held = iter(jobs), read, threads, held
        self._running: deque[_Running[T]] = deque()
        self.waited = 0.0

    def __enter__(self) -> "ReadingAhead[T, Item]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for running in self._running:
            running.unwanted.set()
        while self._running:
            self._running.popleft().thread.join()

    def __iter__(self) -> Iterator[tuple[T, Iterator[Item]]]:
        while True:
            while len(self._running) < self._threads and (job := next(self._jobs, None)) is not None:
                self._running.append(_Running(job, self._read, self._held))
            if not self._running:
                return
            running = self._running[0]
            yield running.job, self._taken(running.items)
            running.unwanted.set()
            self._running.popleft().thread.join()

    def _taken(self, items: "queue.Queue[Any]") -> Iterator[Item]:
        while True:
            begun = time.perf_counter()
            item = items.get()
            self.waited += time.perf_counter() - begun
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item


class _Running(Generic[T]):
    """A job that is being read."""

    def __init__(self, job: T, read: Callable[[T], Generator[Any, None, None]], held: int) -> None:
        self.job = job
        self.items: queue.Queue[Any] = queue.Queue(maxsize=held)
        self.unwanted = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(read,), daemon=True)
        self.thread.start()

    def _run(self, read: Callable[[T], Generator[Any, None, None]]) -> None:
        _yield_to_others()
        try:
            with closing(read(self.job)) as items:
                for item in items:
                    if not self._put(item):
                        return
            self._put(_END)
        except BaseException as error:  # whatever it is, the caller gets it
            self._put(error)

    def _put(self, item: object) -> bool:
        while not self.unwanted.is_set():
            try:
                self.items.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _yield_to_others() -> None:
    """Give this thread, and those of FFmpeg that it starts, a low priority, where threads have one of their own.

    The network's threads wait for each other after every layer: one that has to wait for a core holds up all.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
