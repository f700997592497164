"""A process of its own for each implementation, so that their memory and their allocators do not mix.

The other side of the pipe is a `Measurer`. Nobody works while another does: every request waits for its answer.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from wan_vae.benchmark.measurer import Measurer, Setup
from wan_vae.errors import UserError

_SECONDS_TO_END = 10


class Worker:
    """A process that measures one implementation until the `with` block ends, however it ends."""

    def __init__(self, setup: Setup) -> None:
        self._name = setup.implementation
        # A fork of a process that has run torch can hang in its threads.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        # With only the worker holding its end, its death is the end of the pipe.
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.join()
        self._connection.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what a method of the worker's `Measurer` returns.

        Raises:
            UserError: The process is gone.
            Exception: What the method raised.
        """
        try:
            self._connection.send((method, arguments))
            result, error, trace = self._connection.recv()
        except (EOFError, ConnectionError) as gone:
            self.process.join(_SECONDS_TO_END)
            raise UserError(
                f"the process of {self._name} ended with code {self.process.exitcode} when it was to {method};"
                " if memory ran out, take a smaller --size, fewer --frames or --no-errors."
            ) from gone
        if error is not None:
            raise error from _RemoteTraceback(trace)
        return result


class _RemoteTraceback(Exception):  # noqa: N818 (it is shown as a cause, not raised)
    """Where in the worker an exception came from."""


def _serve(connection: Connection, setup: Setup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    measurer: Measurer | None = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return  # whom this was for is gone
        answer: tuple[Any, Exception | None, str]
        try:
            measurer = measurer or Measurer(setup)
            answer = getattr(measurer, method)(*arguments), None, ""
        except Exception as error:
            answer = None, _sendable(error), traceback.format_exc()
        connection.send(answer)


def _sendable(error: Exception) -> Exception:
    # Of what torch raises, not everything survives a pipe as what it was.
    return error if isinstance(error, (UserError, MemoryError, OSError)) else RuntimeError(str(error))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    # A process is born with what its parent ignores: Ctrl-C reaches all of them, and only one is to end the others.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
