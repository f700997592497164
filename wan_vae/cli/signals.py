"""SIGINT (Ctrl-C), SIGTERM and SIGHUP: the command cleans up, then the process dies of the signal.

Shells end a loop only if the command in it died of the signal; an exit code of 130 does not count. This module imports
nothing heavy, as it must be set up before the imports of a command, which take longer than a person's reaction.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

GRACE = 5.0
"""Seconds that a chunk may still take after a signal."""

INTERRUPTED = 130
"""Exit code after Ctrl-C where the number of the signal is unknown; typer's."""

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received: list[int] = []
_request: Callable[[], None] | None = None


@contextmanager
def handled() -> Iterator[None]:
    """Remember signals and raise KeyboardInterrupt; when the process exits, it dies of the first one.

    A third signal ends the process at once. Signals that are ignored, as by nohup, stay ignored.
    """
    _received.clear()
    numbers = [number for number in _NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, _handle) for number in numbers}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, signal.default_int_handler)  # KeyboardInterrupt
    hook = sys.unraisablehook

    def raise_lost_again(lost: "sys.UnraisableHookArgs") -> None:
        # A signal may arrive in a finalizer, where exceptions are lost.
        if lost.exc_type is KeyboardInterrupt:
            _set_alarm(0.05)
        else:
            hook(lost)

    sys.unraisablehook = raise_lost_again
    try:
        yield
    except KeyboardInterrupt:  # between the command's end and `restore_defaults`
        die(received() or signal.SIGINT)
    finally:
        _set_alarm(0)
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # While Python exits, exceptions are lost as well.
        atexit.register(lambda: [signal.signal(number, signal.SIG_DFL) for number in numbers])


def restore_defaults() -> None:
    """Let the next signals end the process at once: the command has ended and cleaned up."""
    _set_alarm(0)
    for number in _NUMBERS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def deferred(request: Callable[[], None] | None = None) -> Iterator[None]:
    """Inside, the first signal does not raise: `check_interrupted` does, or a second signal.

    Args:
        request: Called at the first signal; by default, it raises after `GRACE` seconds without a check.
    """
    global _request
    before, _request = _request, request or (lambda: _set_alarm(GRACE))
    try:
        yield
    finally:
        _request = before


def check_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal was received."""
    if _received:
        _set_alarm(0)
        raise KeyboardInterrupt


def received() -> int | None:
    """Return the number of the first signal received; None for none."""
    return _received[0] if _received else None


def die(number: int) -> NoReturn:
    """End this process by a signal's default action, without Python's cleanup."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
            stream.flush()
    if os.name != "nt":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)


def _handle(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > 1:
        signal.signal(number, signal.SIG_DFL)
    elif _request is not None:
        _request()
        return
    raise KeyboardInterrupt


def _set_alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # Windows has none
        signal.setitimer(signal.ITIMER_REAL, seconds)


# Registered before the functions of all later imports, so that it runs after them.
atexit.register(lambda: die(_received[0]) if _received else None)
