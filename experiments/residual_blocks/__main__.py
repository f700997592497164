"""Compare the kinds of residual block: train each at three depths, and write a table, plots and verdicts.

From a clone: `python -m experiments.residual_blocks SETTINGS --out FOLDER`.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import main, options
from wan_vae.errors import UserError
from wan_vae.io.atomic_output import check_output, written_beside

app = typer.Typer(name="residual_blocks", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
PICTURES = ("psnr", "gradient", "identity_distance", "efficiency", "choices")
OUTPUTS = ("results.csv", "table.md", "verdicts.md", *(f"{name}.png" for name in PICTURES))


@app.command()
def residual_blocks(
    settings: Annotated[Path, typer.Argument(help="A YAML file; experiments/residual_blocks/configs holds two.")],
    out: Annotated[Path, typer.Option(help="The folder for the table, the verdicts and the plots.")],
    document: Annotated[
        Path | None, typer.Option(help="A Markdown file whose marked parts are replaced by the table and the verdicts.")
    ] = None,
    cache: Annotated[
        Path, typer.Option(help="Folder of finished runs; an interrupted ablation resumes from it.")
    ] = Path("runs/ablation"),
    workers: Annotated[int, typer.Option(min=1, help="Processes that train at the same time.")] = os.cpu_count() or 1,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Train the networks of SETTINGS that are not in the cache, and write the results."""
    try:
        from experiments.residual_blocks.claims import verdicts_of
        from experiments.residual_blocks.plots import draw_all, save
        from experiments.residual_blocks.report import (
            check_marks,
            filled,
            markdown_table,
            markdown_verdicts,
            write_csv,
        )
        from experiments.residual_blocks.settings import load_ablation
        from experiments.residual_blocks.study import run_study
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing; install it: pip install 'wan-vae[lab]'.") from error

    ablation = load_ablation(settings)
    out.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS:
        check_output(out / name, overwrite=overwrite, inputs=(settings,))
    if document is not None:
        check_marks(document, ["table", "verdicts"])

    study = run_study(ablation, cache, workers, say=lambda message: typer.echo(message, err=True))
    parts = {"table": markdown_table(study), "verdicts": markdown_verdicts(verdicts_of(study))}
    with ExitStack() as written:
        write_csv(study, written.enter_context(written_beside(out / "results.csv", overwrite=overwrite)))
        for name, figure in draw_all(study).items():
            save(figure, written.enter_context(written_beside(out / f"{name}.png", overwrite=overwrite)))
        for name, part in parts.items():
            written.enter_context(written_beside(out / f"{name}.md", overwrite=overwrite)).write_text(
                part, encoding="utf-8"
            )
        if document is not None:
            text = filled(document.read_text(encoding="utf-8"), parts)
            written.enter_context(written_beside(document)).write_text(text, encoding="utf-8")
    typer.echo(parts["verdicts"], nl=False)


if __name__ == "__main__":
    main(program=app)
