"""Show in docs/sharding.md what several devices compute and send."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.cli import main
from wan_vae.config import load_config
from wan_vae.errors import UserError
from wan_vae.io.atomic_output import written_beside
from wan_vae.sharding.scaling import Scaling, scaling

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "sharding.md"
SIZES = {"720p": (720, 1280), "4K": (2160, 3840)}
DEVICES = (2, 4, 8)
app = typer.Typer(name="sharding_table", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def sharding_table(
    checkpoint: Annotated[str, typer.Option(help="A preset, or a config's YAML file.")] = "wan2.1",
    frames: Annotated[int, typer.Option(help="Of the clip.")] = 81,
    tera: Annotated[float, typer.Option(help="Operations that each device computes in a picosecond.")] = 400,
    document: Annotated[Path, typer.Option(help="The Markdown file with the marks.")] = DOCUMENT,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if something would change.")] = False,
) -> None:
    """Replace the marked part of DOCUMENT by a table of what is computed and sent."""
    before = document.read_text(encoding="utf-8")
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows(checkpoint, frames, tera * 1e12))
    after = re.sub(r"(<!-- table -->\n).*(<!-- /table -->)", rf"\g<1>{table}\2", before, flags=re.DOTALL)
    if check:
        if after != before:
            raise UserError(f"{document} is not up to date; run python scripts/sharding_table.py.")
        return
    with written_beside(document) as beside:
        beside.write_text(after, encoding="utf-8")


def rows(checkpoint: str, frames: int, flops_per_second: float) -> Iterator[list[str]]:
    yield ["", "devices", "parts", "TFLOP", "computes, s", "sends, GB", "balance, GB/s", "no gain, GB/s", "result, GB"]
    yield ["---", "---:", "---", *["---:"] * 6]
    for name, (height, width) in SIZES.items():
        for encodes in (True, False):
            found = scaling(
                load_config(checkpoint), encodes=encodes, frames=frames, height=height, width=width, devices=DEVICES
            )
            for index, each in enumerate(found):
                yield [
                    f"{name} {'encode' if encodes else 'decode'}",
                    str(DEVICES[index]),
                    f"{each.grid.rows}x{each.grid.columns}",
                    f"{each.flops / 1e12:.0f}",
                    f"{each.seconds(flops_per_second):.2f}",
                    f"{each.sent / 1e9:.2f}",
                    f"{each.balance(flops_per_second) / 1e9:.2f}",
                    f"{no_gain(found[index - 1], each, flops_per_second) / 1e9:.2f}" if index > 0 else "",
                    f"{each.result / 1e9:.2f}",
                ]


def no_gain(fewer: Scaling, more: Scaling, flops_per_second: float) -> float:
    """Return the bytes a second below which more devices take longer, though nothing is sent beside the computation."""
    saved = fewer.seconds(flops_per_second) - more.seconds(flops_per_second)
    return max(0.0, (more.sent - fewer.sent) / saved)


if __name__ == "__main__":
    main(program=app)
