"""The commands gathered, and what becomes of their errors."""

import atexit
import gc
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

import wan_vae
from wan_vae.cli.benchmark import benchmark
from wan_vae.cli.common import shortage
from wan_vae.cli.convert import convert
from wan_vae.cli.decode import decode
from wan_vae.cli.distributed import end, follows, is_loss
from wan_vae.cli.encode import encode
from wan_vae.cli.info import info
from wan_vae.cli.reconstruct import reconstruct
from wan_vae.cli.train import train
from wan_vae.errors import UserError

INTERRUPTED = 130
# typer has click inside or beside it, depending on its version; this is the class either way.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="wan-vae",
    help="The video VAE of Wan2.1 and its siblings: clips to latents and back.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (encode, decode, reconstruct, info, convert, train, benchmark):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(wan_vae.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that come before a command."""


def main(arguments: Sequence[str] | None = None, program: typer.Typer = app) -> NoReturn:
    """Run a command line and exit: 0 if it worked, 2 for what the user can mend, 130 after Ctrl-C.

    Args:
        arguments: Without the program's name; default those the program was started with.
        program: The commands, for scripts that have their own.
    """
    # At exit Python would look for garbage among all objects of PyTorch's, for a quarter of a second, to no end.
    atexit.register(gc.freeze)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _terminate)
    try:
        code = (
            program(
                list(sys.argv[1:] if arguments is None else arguments) or (["--help"] if program is app else []),
                prog_name=program.info.name,
                standalone_mode=False,
            )
            or 0
        )
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as leaving:
        end(leaving.code)
    except UsageError as error:
        if follows():
            end(2)
        _fail(error.format_message(), code=2)
    except UserError as error:
        _fail(str(error), code=2)
    except OSError as error:
        # A full disk, a file without permission: the system's sentence, and the path it is about.
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), code=2)
    except (MemoryError, RuntimeError) as error:
        if is_loss(error):
            _fail("another of the processes that share the clip has ended", code=2)
        missing = shortage(error)
        if missing is None:
            raise
        _fail(f"there is not enough memory ({missing}); take a smaller --size", code=2)
    # typer turns Ctrl-C into an exception of its own or, in later versions, into this code.
    if code == INTERRUPTED:
        _fail("interrupted; no output was written.", code=code)
    end(code)


def _fail(message: str, *, code: int) -> NoReturn:
    typer.echo(f"wan-vae: {message.rstrip('.')}.", err=True)
    end(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # An exception, so that half-written outputs are removed on the way out.
    raise SystemExit(128 + number)
