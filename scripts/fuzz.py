"""Attack the command line with seeded damaged and hostile inputs, and print how the commands ended, by class."""

import shutil
import sys
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.robustness.attacks import ATTACKS
from tests.robustness.runner import Runner, fault
from tests.robustness.samples import make_samples
from wan_vae.cli import main

app = typer.Typer(name="fuzz", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def fuzz(
    count: Annotated[int, typer.Option(min=1, help="Inputs of each class.")] = 120,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    only: Annotated[str, typer.Option(help="Classes whose name holds this.")] = "",
    keep: Annotated[Path | None, typer.Option(help="A folder for the inputs that went wrong.")] = None,
) -> None:
    """Run COUNT attacks of each class; exit with 1 if any ended badly."""
    bad: dict[str, list[tuple[int, str]]] = {}
    typer.echo(f"{'class':<28}{'inputs':>7}{'done':>6}{'refused':>9}{'bad':>5}{'most MiB':>10}{'slowest s':>11}")
    with TemporaryDirectory() as name:
        place, folder = Path(name) / "samples", Path(name) / "case"
        place.mkdir()
        samples = make_samples(place)
        folder.mkdir()
        with Runner(folder) as runner:
            for kind in (kind for kind in ATTACKS if only in kind):
                codes: Counter[int | None] = Counter()
                most, slowest = 0, 0.0
                for seed in range(first, first + count):
                    shutil.rmtree(folder)
                    folder.mkdir()
                    case = ATTACKS[kind](Random(f"{kind} {seed}"), samples, folder)
                    ended = runner.run(case)
                    codes[ended.code] += 1
                    most, slowest = max(most, ended.growth), max(slowest, ended.seconds)
                    wrong = fault(case, ended)
                    if wrong is not None:
                        bad.setdefault(kind, []).append((seed, wrong))
                        typer.echo(
                            f"  seed {seed}: {wrong}: {' '.join(case.arguments)!r}: {ended.err[-300:]!r}", err=True
                        )
                        if keep is not None:
                            kept = keep / f"{kind} {seed}"
                            kept.mkdir(parents=True, exist_ok=True)
                            for file in (file for file in folder.iterdir() if file.is_file()):
                                shutil.copy(file, kept)
                found = len(bad.get(kind, []))
                typer.echo(f"{kind:<28}{count:>7}{codes[0]:>6}{codes[2]:>9}{found:>5}{most >> 20:>10}{slowest:>11.1f}")
    if bad:
        raise typer.Exit(1)


if __name__ == "__main__":
    main(program=app)
