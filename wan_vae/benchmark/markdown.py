"""Benchmarks that were kept, as the table in the README."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wan_vae.benchmark.implementations import OURS, THEIRS
from wan_vae.benchmark.record import WIDEST, Record
from wan_vae.benchmark.report import NOT_MEASURED, ratio_of, ratio_text, weights_text
from wan_vae.errors import UserError

_OPENING, _CLOSING = "<!-- speed -->", "<!-- /speed -->"
_PLACE = re.compile(f"{re.escape(_OPENING)}.*?{re.escape(_CLOSING)}", re.DOTALL)
_COLUMNS = {
    "on": "---",
    "model and clip": "---",
    "": "---",
    "dtype": "---",
    "seconds": "---:",
    "diffusers: seconds": "---:",
    "times as fast": "---:",
    f"than its {WIDEST}": "---:",
    "MiB": "---:",
    "diffusers: MiB": "---:",
    "of matmul": "---:",
}


def markdown(files: Sequence[Path]) -> str:
    """Return a table of what `wan-vae benchmark --json` wrote, and where each file's figures come from.

    Returns:
        Lines that each end in a newline; nothing without files.

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
    header = [list(_COLUMNS), list(_COLUMNS.values())]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in header + rows)
    return f"{table}\n{''.join(sources)}"


def filled(text: str, table: str) -> str:
    """Return a document with what stands between its marks replaced.

    Raises:
        UserError: It has no marks.
    """
    if not _PLACE.search(text):
        raise UserError(f"the document has no place for the table: it lacks {_OPENING} and {_CLOSING}.")
    content = f"{_OPENING}\n\n{table}\n{_CLOSING}" if table else f"{_OPENING}\n{_CLOSING}"
    return _PLACE.sub(lambda _: content, text)


def _rows(record: Record) -> list[list[str]]:
    found = {(each["direction"], each["dtype"], each["implementation"]): each for each in record["results"]}
    machine, clip = record["machine"], record["clip"]
    on = machine["name"]
    if machine["device"] != "cuda":
        on += f"{' with AMX' if 'amx_bf16' in machine['instructions'] else ''}, {_threads(machine['threads'])}"
    shown = f"{record['model']['name']}, {clip['frames']} frames of {clip['width']}x{clip['height']}"
    rows = []
    for (direction, dtype, name), ours in found.items():
        if name != OURS:
            continue
        theirs = found.get((direction, dtype, THEIRS))
        ratios = (ratio_of(record, direction, dtype, against) for against in (dtype, WIDEST))
        rows.append(
            [
                *(on, shown, direction, dtype),
                *(_seconds(each) for each in (ours, theirs)),
                *("" if ratio is None else ratio_text(ratio) for ratio in ratios),
                *(_memory(each) for each in (ours, theirs)),
                f"{ours['share_of_matmul']:.0%}",
            ]
        )
    return rows


def _seconds(result: Record | None) -> str:
    return "" if result is None else f"{result['median_seconds']:.3g}"


def _memory(result: Record | None) -> str:
    if result is None:
        return ""
    return NOT_MEASURED if result["peak_bytes"] is None else f"{result['peak_bytes'] / 2**20:.0f}"


def _threads(count: Any) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _source(path: Path, record: Record) -> str:
    packages = [f"{name} {record[name]}" for name in ("wan_vae", "torch", "diffusers") if record[name] is not None]
    return (
        f"- `{path.parent.name}/{path.name}`, {record['date'][:10]}: {', '.join(packages)}; medians of"
        f" {record['runs']} runs; weights: {weights_text(record)}.\n"
    )
