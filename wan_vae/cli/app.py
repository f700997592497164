"""The commands, and the messages for their errors."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

import wan_vae
from wan_vae.cli import options, signals
from wan_vae.cli.benchmark import benchmark
from wan_vae.cli.cache import cache
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
from wan_vae.errors import FULL_DISK, UserError, memory_shortage, printable

# typer contains click or depends on it, according to its version; this is the class in both cases.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="wan-vae",
    help="The video VAE of Wan2.1 and its siblings: clips to latents and back.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
_EXAMPLES = {
    "encode": """
        wan-vae encode clip.mp4                                       # into clip.safetensors
        wan-vae encode clip.mp4 out.safetensors --checkpoint wan2.1
        wan-vae encode clip.mp4 --size 832x480 --fit crop --fps 16 --length 81
        wan-vae encode clips/ latents/                                # all in a folder
    """,
    "decode": """
        wan-vae decode clip.safetensors                               # into clip_decoded.mp4
        wan-vae decode clip.safetensors back.mp4 --checkpoint wan2.1
        wan-vae decode latents.pt look.mp4 --preview                  # at once, without a checkpoint
    """,
    "reconstruct": """
        wan-vae reconstruct clip.mp4                                  # into clip_reconstructed.mp4
        wan-vae reconstruct clip.mp4 out.mp4 --side-by-side pairs.mp4 --contact-sheet sheet.png
    """,
    "report": """
        wan-vae report clip.mp4 reconstruction.mp4 page.html
    """,
    "compare": """
        wan-vae compare clip.mp4 page.html --checkpoint wan2.1 --checkpoint lightvae
    """,
    "serve": """
        wan-vae serve --checkpoint wan2.1 --port 8000
    """,
    "cache": """
        wan-vae cache clips/ latents/ --checkpoint wan2.1 --fps 16
        wan-vae cache clips.csv latents/ --format musubi --resolution 832x480
    """,
    "pack": """
        wan-vae pack latents/ shards/ --format webdataset --shard-size 500MB
    """,
    "info": """
        wan-vae info clip.safetensors
        wan-vae info wan2.1 --plan 1920x1080x81 --memory 16GiB
        wan-vae info nano --plan clip.mp4
    """,
    "convert": """
        wan-vae convert Wan2.1_VAE.pth vae/ --layout diffusers
    """,
    "train": """
        wan-vae train finetune_decoder --checkpoint wan2.1 --videos clips/
        wan-vae train my_recipe.yaml --out runs/mine
    """,
    "benchmark": """
        wan-vae benchmark --size 256x256 --frames 17 --dtype bf16
    """,
}


def _examples(command: str) -> str | None:
    lines = [line.strip() for line in _EXAMPLES.get(command, "").strip().splitlines()]
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)]) if lines else None


def _with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options --quiet and --verbose."""
    types = {"quiet": options.QuietOption, "verbose": options.VerboseOption}
    own = inspect.signature(command)

    @functools.wraps(command)
    def run(quiet: bool, verbose: bool, **arguments: Any) -> None:
        from wan_vae.cli import messages

        with messages.shown(quiet=quiet, verbose=verbose):
            command(**arguments)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in types.items()
    ]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **types}
    return run


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
    app.command(epilog=_examples(command.__name__))(_with_verbosity(command))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(wan_vae.__version__)
        raise typer.Exit


@app.callback()
def program_options(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that come before a command."""


def explain(error: Exception) -> tuple[int, str | None]:
    """Return the exit code and one sentence for the user, None where another process prints it; raise other errors."""
    if isinstance(error, typer.Abort):
        return signals.INTERRUPTED, None
    if isinstance(error, UsageError):
        return 2, _sentence(_usage_message(error)) if is_main() else None
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
        if error.errno in FULL_DISK:
            text = f"{text}; make room, or name another place for the output"
    elif is_connection_loss(error):
        # The process that was lost has printed why.
        return 2, LOST if is_main() else None
    else:
        signals.check_interrupted()  # it may stem from a lost KeyboardInterrupt, such as half an import
        raise error
    shown = agree(text)
    return 2, None if shown is None else _sentence(shown)


def _usage_message(error: Any) -> str:
    """Return what is wrong with a command line, and what would be right or where that is told."""
    text = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".,")
    if getattr(error, "possibilities", None):
        return f"{error.message.rstrip('.')}. Did you mean {' or '.join(sorted(error.possibilities))}?"
    if error.ctx is None or text.endswith("?"):
        return text
    if text.startswith(("Missing", "Got unexpected")):
        usage = re.sub("[{}]", "", error.ctx.get_usage())
        text += f"; the usage is {' '.join(usage.split()[1:])}"
    return f"{text}; see {error.ctx.command_path} --help" if not text.startswith("Invalid") else text


def _sentence(text: str) -> str:
    text = printable(text)
    return text if text.endswith("?") else f"{text.rstrip('.')}."
