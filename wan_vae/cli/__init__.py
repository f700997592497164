"""The command line: one module per command; none of them imports torch before its command runs."""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

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
    with signals.handled():
        try:
            from wan_vae.cli.app import app, explain

            words = list(sys.argv[1:] if arguments is None else arguments)
            if program is None:
                program, words = app, words or ["--help"]
            try:
                code = program(words, prog_name=program.info.name, standalone_mode=False) or 0
            except Exception as error:
                code, message = explain(error)
            # typer returns this code for Ctrl-C; older versions raise an exception of their own.
            interrupted = code == signals.INTERRUPTED
        except SystemExit as error:
            code = error.code
        except KeyboardInterrupt:
            interrupted = True
        number = signals.received()
        if number is not None or interrupted:
            code = signals.INTERRUPTED if number is None else 128 + number
        if interrupted and os.environ.get("RANK", "0") == "0":  # of several processes, one prints it
            message = "interrupted; no output was written."
        if message is not None:
            print(f"wan-vae: {message}", file=sys.stderr)
    if "torch.distributed" in sys.modules:
        from wan_vae.cli.distributed import leave

        leave(code)
    sys.exit(code)
