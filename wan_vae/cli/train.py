"""`wan-vae train`: a training run from a recipe."""

import importlib.util
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from wan_vae.cli import options, signals
from wan_vae.cli.common import print_result
from wan_vae.errors import UserError, memory_shortage


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A YAML file, or the name of a recipe in the package: finetune_decoder, full, nano.", metavar="RECIPE"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder; default runs/ and the recipe's name. A run in it is continued."),
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Train on this clip or folder of clips.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Train on this image or folder of images.")] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="Validate on the file of this name and do not train on it; may be given several times."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Start from these weights instead of the recipe's.", metavar="NAME|PATH")
    ] = None,
    lpips_backbone: Annotated[
        Path | None, typer.Option(help="Convolutions of the LPIPS network, a safetensors file.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop at this step, before the recipe ends.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Train or fine-tune a VAE, as a recipe says.

    After an interruption the same command continues, with the same result.

    For several processes or machines, start it with `accelerate launch -m wan_vae train RECIPE`.
    """
    needed = ("accelerate", "lpips", "pydantic", "tensorboard")
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"training needs {', '.join(missing)}; run pip install 'wan-vae[train]'.")

    from wan_vae.cli.messages import Bar
    from wan_vae.training import WEIGHTS_NAME, Trainer, load_recipe

    changes: dict[str, dict[str, Any]] = {}
    data: dict[str, Any] = {
        name: str(path) for name, path in (("videos", videos), ("photos", photos)) if path is not None
    }
    if held_out:
        data["held_out"] = held_out
    if data:
        changes["data"] = data
    if lpips_backbone is not None:
        changes["lpips"] = {"backbone": str(lpips_backbone)}
    if checkpoint is not None:
        changes["model"] = {"checkpoint": checkpoint, "preset": None}
    folder = Path("runs") / recipe.stem if out is None else out
    try:
        with Bar(unit="step") as bar:
            trainer = Trainer(load_recipe(recipe, changes), folder)

            def show(done: int, total: int, losses: Mapping[str, float]) -> None:
                if bar.total is None:
                    bar.begin("training", total, initial=done)
                if "train_total" in losses:
                    bar.set_postfix_str(f"loss {losses['train_total']:.4f}", refresh=False)
                bar.update(done - bar.n)

            with signals.deferred(trainer.request_stop):
                figures = trainer.run(max_steps, show)
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        lacking = memory_shortage(error)
        if lacking is None:
            raise
        raise UserError(
            f"there is not enough memory ({lacking.rstrip('.')}); lower crop, batch or lengths of the recipe's stages,"
            " or set model.gradient_checkpointing to true."
        ) from error
    if trainer.stopped:
        if trainer.is_main:
            typer.echo(f"wan-vae: stopped after step {trainer.step}; the same command goes on from there.", err=True)
        # Another process of the run may have received it.
        raise SystemExit(128 + (signals.received() or signal.SIGTERM))
    if trainer.is_main:
        weights = folder / WEIGHTS_NAME
        print_result({"run": folder, "weights": weights, "steps": trainer.step, **figures}, as_json=as_json)
