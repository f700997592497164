"""Show the benchmarks in benchmarks/ as a table in docs/speed.md."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.benchmark.implementations import DIFFUSERS, OPENVINO, PEERS, WAN_VAE
from wan_vae.benchmark.record import BASELINE_DTYPE, Record
from wan_vae.benchmark.report import NOT_MEASURED, describe_weights, find_ratio
from wan_vae.cli import main
from wan_vae.errors import UserError
from wan_vae.io.atomic_output import written_beside

ROOT = Path(__file__).resolve().parents[1]
OPENING, CLOSING = "<!-- speed -->", "<!-- /speed -->"
MARKED = re.compile(f"{re.escape(OPENING)}.*?{re.escape(CLOSING)}", re.DOTALL)
COLUMNS = {
    "on": "---",
    "model and clip": "---",
    "": "---",
    "dtype": "---",
    "seconds": "---:",
    "diffusers: seconds": "---:",
    "times as fast": "---:",
    f"than its {BASELINE_DTYPE}": "---:",
    "than OpenVINO": "---:",
    "MiB": "---:",
    "diffusers: MiB": "---:",
    "of matmul": "---:",
}
# The first that a CPU has.
INSTRUCTIONS = {"amx_bf16": " with AMX", "avx512_bf16": " with AVX-512 BF16", "avx2": " with AVX2"}
app = typer.Typer(name="benchmark_table", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def benchmark_table(
    folder: Annotated[Path, typer.Option(help="Folder of speed_*.json.")] = ROOT / "benchmarks",
    document: Annotated[Path, typer.Option(help="The Markdown file with the marks.")] = ROOT / "docs" / "speed.md",
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if something would change.")] = False,
) -> None:
    """Replace the marked part of DOCUMENT by a table of the speed_*.json of `wan-vae benchmark` and measure_gpu.py."""
    before = document.read_text(encoding="utf-8")
    after = fill_marks(before, markdown(sorted(folder.glob("speed_*.json"))))
    if check:
        if after != before:
            raise UserError(f"{document} does not show what is in {folder}; run python scripts/benchmark_table.py.")
        return
    with written_beside(document) as beside:
        beside.write_text(after, encoding="utf-8")


def markdown(files: Sequence[Path]) -> str:
    """Return a table of benchmark records and a list of their sources; "" without files.

    Raises:
        UserError: A file holds something else.
    """
    rows, sources = [], []
    for path in files:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            rows += _rows(record)
            sources.append(_source(path, record))
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise UserError(f"{path} is not what wan-vae benchmark --json wrote ({error!r}); measure again.") from error
    if not rows:
        return ""
    header = [list(COLUMNS), list(COLUMNS.values())]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in header + rows)
    return f"{table}\n{''.join(sources)}"


def fill_marks(text: str, table: str) -> str:
    """Return a document with the text between its marks replaced.

    Raises:
        UserError: It has no marks.
    """
    if not MARKED.search(text):
        raise UserError(f"the document has no place for the table: it lacks {OPENING} and {CLOSING}.")
    content = f"{OPENING}\n\n{table}\n{CLOSING}" if table else f"{OPENING}\n{CLOSING}"
    return MARKED.sub(lambda _: content, text)


def _rows(record: Record) -> list[list[str]]:
    found = {(each["direction"], each["dtype"], each["implementation"]): each for each in record["results"]}
    machine, clip = record["machine"], record["clip"]
    on = machine["name"]
    if machine["device"] != "cuda":
        instructions = next((said for name, said in INSTRUCTIONS.items() if name in machine["instructions"]), "")
        on += f"{instructions}, {_threads(machine['threads'])}"
    shown = f"{record['model']['name']}, {clip['frames']} frames of {clip['width']}x{clip['height']}"
    rows = []
    for (direction, dtype, name), ours in found.items():
        if name != WAN_VAE:
            continue
        both = (ours, found.get((direction, dtype, DIFFUSERS)))
        rows.append(
            [
                *(on, shown, direction, dtype),
                *("" if each is None else f"{each['median_seconds']:.3g}" for each in both),
                *(find_ratio(record, direction, dtype, against) for against in (dtype, BASELINE_DTYPE)),
                find_ratio(record, direction, dtype, dtype, OPENVINO),
                *(_memory(each) for each in both),
                f"{ours['share_of_matmul']:.0%}",
            ]
        )
    return rows


def _memory(result: Record | None) -> str:
    if result is None:
        return ""
    return NOT_MEASURED if result["peak_bytes"] is None else f"{result['peak_bytes'] / 2**20:.0f}"


def _threads(count: Any) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _source(path: Path, record: Record) -> str:
    packages = [f"{name} {record[name]}" for name in ("wan_vae", "torch", *PEERS) if record.get(name) is not None]
    return (
        f"- `{path.parent.name}/{path.name}`, {record['date'][:10]}: {', '.join(packages)}; medians of"
        f" {record['runs']} runs; weights: {describe_weights(record)}.\n"
    )


if __name__ == "__main__":
    main(program=app)
