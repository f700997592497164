"""`wan-vae train`: a recipe, carried out."""

import importlib.util
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_vae.cli import options
from wan_vae.cli.common import print_result, shortage
from wan_vae.errors import UserError

if TYPE_CHECKING:
    from wan_vae.training import Trainer

_PACKAGES = ("accelerate", "lpips", "pydantic", "tensorboard")


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; configs/train/ holds some to start from.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder; default runs/ and the recipe's name. A run in it goes on."),
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Train on this clip or folder of clips.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Train on this image or folder of images.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Start from these weights rather than the recipe's.", metavar="NAME|PATH")
    ] = None,
    lpips_backbone: Annotated[
        Path | None, typer.Option(help="Convolutions of LPIPS's network, a safetensors file.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many steps in all, sooner than the recipe.")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Train a VAE as RECIPE says; stopped at any time, the same command goes on with the very same result.

    For several processes or machines, start it by accelerate's launcher: `accelerate launch -m wan_vae train RECIPE`.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"training needs {', '.join(missing)}; run pip install 'wan-vae[train]'.")

    from wan_vae.training import WEIGHTS_NAME, Trainer, load_recipe

    changes: dict[str, dict[str, Any]] = {}
    for section, name, value in (
        ("data", "videos", videos),
        ("data", "photos", photos),
        ("lpips", "backbone", lpips_backbone),
    ):
        if value is not None:
            changes.setdefault(section, {})[name] = str(value)
    if checkpoint is not None:
        changes["model"] = {"checkpoint": checkpoint, "preset": None}
    folder = Path("runs") / recipe.stem if out is None else out
    try:
        trainer = Trainer(load_recipe(recipe, changes), folder)
        with _signals_as_requests(trainer) as received:
            figures = trainer.run(max_steps)
    except (MemoryError, RuntimeError) as error:
        lacking = shortage(error)
        if lacking is None:
            raise
        raise UserError(
            f"there is not enough memory ({lacking.rstrip('.')}); lower crop, batch or lengths of the recipe's stages,"
            " or set model.gradient_checkpointing to true."
        ) from error
    if trainer.stopped:
        if trainer.is_main:
            typer.echo(f"wan-vae: stopped after step {trainer.step}; the same command goes on from there.", err=True)
        raise SystemExit(128 + (received[0] if received else signal.SIGTERM))
    if trainer.is_main:
        weights = folder / WEIGHTS_NAME
        print_result({"run": folder, "weights": weights, "steps": trainer.step, **figures}, as_json=as_json)


@contextmanager
def _signals_as_requests(trainer: "Trainer") -> Iterator[list[int]]:
    """Let the step under way finish before stopping for Ctrl-C and its like; a second one stops at once."""
    received: list[int] = []

    def request(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        trainer.request_stop()

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What is ignored, as by nohup, stays ignored.
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, request) for number in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
