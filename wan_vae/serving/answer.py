"""From a request to its answer: admission, the body, the wait for the worker, and the bytes as they come."""

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from wan_vae.errors import FULL_DISK, UserError, memory_shortage
from wan_vae.serving.limits import Limits, RefusedError
from wan_vae.serving.work import Answer
from wan_vae.serving.worker import Job, Worker

_logger = logging.getLogger("wan_vae")
_PIECE = 2**18  # bytes


async def answer(
    worker: Worker, request: Request, length: int | None, work: Callable[[BinaryIO], Answer], *, streams: bool = False
) -> Response:
    """Read a body, have the worker do the work, and answer.

    Args:
        length: Bytes that the body must have; None for any number within the limits.
        work: Called with the body as a file, in the worker's thread.
        streams: Answer as soon as there are bytes, rather than when the work is done.

    Raises:
        RefusedError: The request is too large, too slow, or one too many, or the work is refused.
    """
    _check_length(request, length, worker.limits)
    job, body = worker.admit(), None
    try:
        body = tempfile.TemporaryFile()  # noqa: SIM115  # closed by the work, or below
        left = job.deadline - time.monotonic()
        await asyncio.wait_for(_prepare(worker, job, request, body, length, work, streams), left)
        if job.error is not None:
            raise job.error
    except BaseException as error:
        try:
            if job.work is None and body is not None:
                with suppress(OSError):  # a full disk, which writing has told already
                    body.close()
        finally:
            job.abandon()
        raise _refusal(error) from error
    return _Spooled(job, worker.limits.seconds)


async def _prepare(
    worker: Worker,
    job: Job,
    request: Request,
    body: BinaryIO,
    length: int | None,
    work: Callable[[BinaryIO], Answer],
    streams: bool,
) -> None:
    await _read(request, body, worker.limits.body if length is None else length, exact=length is not None)
    worker.submit(job, partial(work, body), body)
    gone = asyncio.create_task(_wait_until_gone(request.receive))
    try:
        while not (job.ended or (streams and job.size)):
            changed = asyncio.create_task(job.changed.wait())
            await asyncio.wait((changed, gone), return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if gone.done():
                raise ClientDisconnect
            job.changed.clear()
    finally:
        gone.cancel()


def _check_length(request: Request, length: int | None, limits: Limits) -> None:
    """Raise a RefusedError if what the head says of the body's length does not fit."""
    declared = request.headers.get("content-length")
    if declared is None:
        return
    limits.check_body(int(declared))  # digits, or the HTTP parser would not have let it through
    if length is not None and int(declared) != length:
        raise RefusedError(422, f"The body has {declared} bytes, but its shape and dtype make {length}.")


async def _read(request: Request, body: BinaryIO, most: int, *, exact: bool) -> None:
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            raise RefusedError(422 if exact else 413, f"The body has more than the {most} bytes that are taken.")
        await asyncio.to_thread(body.write, piece)
    if size == 0 or (exact and size < most):
        raise RefusedError(
            422, f"The body has {size} bytes{f', but its shape and dtype make {most}' if exact else ''}."
        )


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(error: BaseException) -> BaseException:
    """Return an error as one whose status is known; those that no client can cause are returned as they are."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, UserError):
        return RefusedError(422, str(error))
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return RefusedError(504, "The request took too long.")
    if isinstance(error, ClientDisconnect):
        return RefusedError(499, "The client has gone.")
    if isinstance(error, Exception) and memory_shortage(error) is not None:
        return RefusedError(503, "There is not enough memory for this request; send a smaller one.")
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return RefusedError(507, "The server has no room for this request; try again later.")
    return error


class _Spooled(Response):
    """Sends what a job gives, as it comes."""

    def __init__(self, job: Job, seconds: float) -> None:
        self._job, self._seconds = job, seconds
        super().__init__(headers=job.headers)
        del self.headers["content-length"]
        if job.ended:
            self.headers["content-length"] = str(job.size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.create_task(coroutine) for coroutine in (self._send(send), _wait_until_gone(receive))]
        try:
            # A client has as long to take an answer as the work may take.
            end = max(self._job.deadline, time.monotonic()) + self._seconds
            done, _ = await asyncio.wait(tasks, timeout=end - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
            if tasks[0] in done:
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # none may read the file any longer
            self._job.abandon()

    async def _send(self, send: Send) -> None:
        job, sent = self._job, 0
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while True:
            job.changed.clear()
            while sent < job.size:
                piece = await asyncio.to_thread(job.read, sent, min(job.size, sent + _PIECE))
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                sent += len(piece)
            if job.ended and sent == job.size:
                break
            await job.changed.wait()
        if job.error is None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:  # the status is sent: the client learns of it by the connection, which ends too early
            _logger.warning("An answer was cut off: %s", job.error)
