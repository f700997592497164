"""One thread that does the work of all requests, one after another; what it gives is spooled to unnamed files.

So neither a slow client nor a long answer keeps memory or the model, and the event loop never waits for either.
"""

import asyncio
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import BinaryIO, TypeAlias

import torch

from wan_vae.serving.limits import Limits, RefusedError

Work: TypeAlias = Callable[[], tuple[Mapping[str, str], Iterator[bytes]]]
"""Returns the headers of an answer, and its body piece by piece."""

_logger = logging.getLogger("wan_vae")


class Job:
    """A request from its admission to the last byte of its answer. Made and used in the event loop, but for `run`.

    Attributes:
        deadline: Of `time.monotonic`, after which the work stops.
        headers: Of the answer; None before they are known.
        size: Bytes of the answer that can be read so far.
        ended: Whether the work is done, or has failed.
        error: Why it failed.
        changed: Set when any of these changes.
    """

    def __init__(self, deadline: float, release: Callable[[], None]) -> None:
        self.deadline = deadline
        self.headers: Mapping[str, str] | None = None
        self.size = 0
        self.ended = True  # until it is submitted
        self.error: Exception | None = None
        self.changed = asyncio.Event()
        self.work: Work | None = None
        self._body: BinaryIO | None = None
        self._loop = asyncio.get_running_loop()
        self._release = release
        self._abandoned = threading.Event()
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `_close`

    def start(self, work: Work, body: BinaryIO) -> None:
        """Set what is to be done, and the file to close when it is."""
        self.work, self._body, self.ended = work, body, False

    def abandon(self) -> None:
        """Say that nobody waits for the answer any longer: work that runs stops after its piece."""
        self._abandoned.set()
        if self.ended:
            self._close()

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes of the answer."""
        with self._lock:
            self._file.seek(start)
            return self._file.read(stop - start)

    def run(self) -> None:
        """Do the work, in the worker's thread."""
        try:
            assert self.work is not None
            assert self._body is not None
            with self._body, torch.inference_mode():
                self._check()
                headers, pieces = self.work()
                size = 0
                for piece in pieces:
                    with self._lock:
                        self._file.seek(size)
                        self._file.write(piece)
                    size += len(piece)
                    self._tell(headers, size, None, ended=False)
                    self._check()
            self._tell(headers, size, None, ended=True)
        except Exception as error:
            self._tell(None, 0, error.with_traceback(None), ended=True)  # whose frames hold tensors
        finally:
            self.work = None

    def _check(self) -> None:
        if self._abandoned.is_set():
            raise RefusedError(499, "The client has gone.")
        if time.monotonic() > self.deadline:
            raise RefusedError(504, "The request took too long.")

    def _tell(self, headers: Mapping[str, str] | None, size: int, error: Exception | None, *, ended: bool) -> None:
        def update() -> None:
            self.headers, self.size = headers or self.headers, max(size, self.size)
            self.ended, self.error = ended, error
            self.changed.set()
            if ended and self._abandoned.is_set():
                self._close()

        try:
            self._loop.call_soon_threadsafe(update)
        except RuntimeError:  # the loop was closed by a second signal
            _logger.warning("The server has ended before its last request.")

    def _close(self) -> None:
        if not self._file.closed:
            try:
                with suppress(OSError):  # a full disk, which writing has told already
                    self._file.close()
            finally:
                self._release()


class Worker:
    """The queue of a server and the thread that serves it.

    Attributes:
        admitted: Requests that are read, wait, run or are being answered.
        running: Whether the work of one is being done.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.admitted = 0
        self.running = False
        self._stopping = False
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="wan-vae-worker", daemon=True)
        self._thread.start()

    def admit(self) -> Job:
        """Take a place in the queue; a RefusedError if there is none."""
        self._check_stopping()
        if self.admitted >= self.limits.waiting:
            raise RefusedError(429, f"{self.admitted} requests wait already; try again later.")
        job = Job(time.monotonic() + self.limits.seconds, self._release)
        self.admitted += 1
        return job

    def submit(self, job: Job, work: Work, body: BinaryIO) -> None:
        """Queue the work of an admitted job, after which `body` is closed."""
        self._check_stopping()
        job.start(work, body)
        self._jobs.put(job)

    def stop(self) -> None:
        """Take nothing more: the running job ends, and those that wait are refused. Safe in a signal handler."""
        self._stopping = True

    def join(self) -> None:
        """Stop, and wait for the running job."""
        self.stop()
        self._jobs.put(None)
        self._thread.join()

    def _check_stopping(self) -> None:
        if self._stopping:
            raise RefusedError(503, "The server is stopping.")

    def _release(self) -> None:
        self.admitted -= 1

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._stopping:
                job.work = _refuse
            self.running = True
            job.run()
            self.running = False


def _refuse() -> tuple[Mapping[str, str], Iterator[bytes]]:
    raise RefusedError(503, "The server is stopping.")
