"""The commands, and the messages for their errors."""

from typing import Annotated, Any

import typer

import wan_vae
from wan_vae.cli import signals
from wan_vae.cli.benchmark import benchmark
from wan_vae.cli.cache import cache
from wan_vae.cli.common import memory_shortage
from wan_vae.cli.compare import compare
from wan_vae.cli.convert import convert
from wan_vae.cli.decode import decode
from wan_vae.cli.distributed import LOST, agree, is_connection_loss, is_main
from wan_vae.cli.encode import encode
from wan_vae.cli.info import info
from wan_vae.cli.pack import pack
from wan_vae.cli.reconstruct import reconstruct
from wan_vae.cli.report import report
from wan_vae.cli.serve import serve
from wan_vae.cli.train import train
from wan_vae.errors import UserError, printable

# typer contains click or depends on it, according to its version; this is the class in both cases.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="wan-vae",
    help="The video VAE of Wan2.1 and its siblings: clips to latents and back.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    encode,
    decode,
    reconstruct,
    report,
    compare,
    cache,
    pack,
    info,
    convert,
    train,
    serve,
    benchmark,
):
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


def explain(error: Exception) -> tuple[int, str | None]:
    """Return the exit code and one sentence for the user, None where another process prints it; raise other errors."""
    if isinstance(error, typer.Abort):
        return signals.INTERRUPTED, None
    if isinstance(error, UsageError):
        return 2, _sentence(error.format_message()) if is_main() else None
    shortage = memory_shortage(error)
    if shortage is not None:
        return 2, _sentence(f"there is not enough memory ({shortage}); free some, or take a smaller --size")
    if isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, RecursionError):
        text = f"a file is nested too deeply to be read ({error})"
    elif isinstance(error, OSError):
        # A full disk or a missing permission: the system's sentence, and the path that it is about.
        text = f"{error.strerror or error}: {error.filename}" if error.filename else error.strerror or str(error)
    elif is_connection_loss(error):
        # The process that was lost has printed why.
        return 2, LOST if is_main() else None
    else:
        signals.check_interrupted()  # it may stem from a lost KeyboardInterrupt, such as half an import
        raise error
    shown = agree(text)
    return 2, None if shown is None else _sentence(shown)


def _sentence(text: str) -> str:
    return f"{printable(text).rstrip('.')}."
