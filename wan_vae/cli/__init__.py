"""The command line: one module per command; none of them imports torch before its command runs."""

import atexit
import gc
import io
import os
import select
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TextIO

from wan_vae.cli import signals

if TYPE_CHECKING:
    import typer

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, program: "typer.Typer | None" = None) -> NoReturn:
    """Run a command line and exit: 0 on success, 2 for user errors; after a signal the process dies of it.

    Args:
        arguments: Without the program's name; default `sys.argv`.
        program: The commands; default those of `wan-vae`. Scripts have their own.
    """
    # At exit Python would look for garbage among all of PyTorch's objects, which takes a quarter of a second.
    atexit.register(gc.freeze)
    # libgomp's threads spin while they wait, 300,000 times by default, and on a busy machine take the cores from each
    # other. Fewer spins are as good there as none (OMP_WAIT_POLICY=PASSIVE), which costs a tenth on an idle machine. It
    # is read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    code: int | str | None = signals.INTERRUPTED
    message, interrupted = None, False
    _prepare_streams()
    stdout = sys.stdout
    with signals.handled():
        try:
            given = list(sys.argv[1:] if arguments is None else arguments)
            empty = _empty(given)
            if empty is None:
                code, message = _run(given, program)
            else:
                code, message = 2, f"{empty} is empty, such as by a variable without a value; give it one."
            # typer returns this code for Ctrl-C; older versions raise an exception of their own.
            interrupted = code == signals.INTERRUPTED
        except SystemExit as error:
            code = error.code
        except KeyboardInterrupt:
            interrupted = True
        signals.restore_defaults()
        lost = _print("", stdout)
        if lost is not None and not isinstance(lost, BrokenPipeError):
            code, message = 2, f"the result cannot be printed ({lost.strerror})."
        number = signals.received()
        if number is not None or interrupted:
            code = signals.INTERRUPTED if number is None else 128 + number
        if interrupted and os.environ.get("RANK", "0") == "0":  # of several processes, one prints it
            outputs = sys.modules.get("wan_vae.io.atomic_output")
            written = outputs is not None and outputs.named
            message = f"interrupted; {'the outputs that are there are whole' if written else 'no output was written'}."
        if message is not None:
            _print(f"wan-vae: {message}\n", sys.stderr)
    if "torch.distributed" in sys.modules:
        from wan_vae.cli.distributed import leave

        leave(code)
    sys.exit(code)


def _empty(words: list[str]) -> str | None:
    """Return the argument that is empty, if one is: a path of no name would be the current folder."""
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        if word == "":
            return before if before.startswith("--") else f"argument number {number + 1}"
        if word.startswith("--") and word.endswith("="):
            return word[:-1]
    return None


def _run(words: list[str], program: "typer.Typer | None") -> tuple[int | str | None, str | None]:
    """Run a command and return its exit code and the message for its error."""
    from wan_vae.cli.app import app, explain

    if program is None:
        program, words = app, words or ["--help"]
    cause: BaseException | None
    try:
        return program(words, prog_name=program.info.name, standalone_mode=False) or 0, None
    except Exception as error:
        cause = error
    except SystemExit as error:
        cause = error.__context__  # typer takes every broken pipe for that of standard output, and exits with 1
        if not isinstance(cause, BrokenPipeError):
            raise
    if isinstance(cause, BrokenPipeError) and _has_no_reader(sys.__stdout__):
        return 0, None  # as of `| head`, which has seen enough
    return explain(cause)


def _has_no_reader(stream: TextIO | None) -> bool:
    if stream is None or not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(stream, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _prepare_streams() -> None:
    """Replace closed standard streams, whose numbers the next files would get, and let the others print any name."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print(text: str, stream: TextIO) -> OSError | None:
    """Print text and what is left in a stream; if that fails, drop it and return the error."""
    try:
        print(text, end="", file=stream, flush=True)
    except OSError as error:
        # Python tries again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None
