"""Show the benchmarks that are kept in benchmarks/ in the README."""

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.benchmark.report import filled, markdown
from wan_vae.cli import main
from wan_vae.errors import UserError
from wan_vae.io.atomic_output import written_beside

ROOT = Path(__file__).resolve().parents[1]
app = typer.Typer(name="benchmark_table", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def benchmark_table(
    folder: Annotated[Path, typer.Option(help="Where speed_*.json are.")] = ROOT / "benchmarks",
    document: Annotated[Path, typer.Option(help="The Markdown file with the marks.")] = ROOT / "README.md",
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if something would change.")] = False,
) -> None:
    """Replace the marked part of DOCUMENT by a table of what `wan-vae benchmark --json` wrote to speed_*.json."""
    before = document.read_text(encoding="utf-8")
    after = filled(before, markdown(sorted(folder.glob("speed_*.json"))))
    if check:
        if after != before:
            raise UserError(f"{document} does not show what is in {folder}; run python scripts/benchmark_table.py.")
        return
    with written_beside(document) as beside:
        beside.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main(program=app)
