"""What was measured, as tables for people.

Benchmarks that were kept, as the table in the README.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wan_vae.benchmark.implementations import OURS, THEIRS
from wan_vae.benchmark.run import WIDEST, Record
from wan_vae.errors import UserError

NOT_MEASURED = "not measured"
_LARGEST_ENTRIES = 15
_LONGEST_NAME = 90
_LEGEND = "Memory is what a call adds. FLOP/s and shares count convolutions and matrix products alone.\n"


def report(record: Record) -> str:
    """Return all tables of a benchmark, lines that each end in a newline."""
    parts = [_heading(record), _speed(record)]
    if record["errors"] is not None:
        parts.append(_errors(record["errors"]))
    for profile in record["profiles"] or ():
        for kind in ("layers", "operations"):
            parts.append(_profile(profile, kind))
    return "\n".join(parts)


def ratio_text(ratio: Record) -> str:
    """Return a ratio with its range, such as "1.84 (1.80 to 1.90)"."""
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


def ratio_of(record: Record, direction: str, dtype: str, against: str) -> Record | None:
    """Find a ratio; None where it was not measured."""
    wanted = {"direction": direction, "dtype": dtype, "against": against}
    return next((ratio for ratio in record["ratios"] if wanted.items() <= ratio.items()), None)


def bytes_text(count: int | None) -> str:
    """Return a number of bytes in MiB."""
    return NOT_MEASURED if count is None else f"{count / 2**20:.0f} MiB"


def weights_text(record: Record) -> str:
    """Return what a model's weights are, of a digest the start."""
    weights: str = record["model"]["weights"]
    return weights[: len("SHA-256 ") + 12]


def _heading(record: Record) -> str:
    clip, machine, ceilings = record["clip"], record["machine"], record["ceilings"]
    products = ", ".join(f"{_rate(value)} in {name}" for name, value in ceilings["matmul_flops_per_second"].items())
    return (
        f"{record['model']['name']} (weights: {weights_text(record)}), {clip['frames']} frames of"
        f" {clip['width']}x{clip['height']}, on {machine['name']}, {machine['threads']} of {machine['cores']} cores,"
        f" torch {record['torch']}.\n"
        f"At best, matrix products reach {products}; copies, {ceilings['copy_bytes_per_second'] / 1e9:.1f} GB/s.\n"
    )


def _speed(record: Record) -> str:
    lines = []
    for result in record["results"]:
        direction, dtype = result["direction"], result["dtype"]
        ours = result["implementation"] == OURS
        found = [ratio_of(record, direction, dtype, against) if ours else None for against in (dtype, WIDEST)]
        lines.append(
            [
                direction,
                dtype,
                result["implementation"],
                f"{result['median_seconds']:.3f} s",
                *("" if ratio is None else ratio_text(ratio) for ratio in found),
                bytes_text(result["peak_bytes"]),
                *([] if record["machine"]["device"] != "cuda" else [bytes_text(result["peak_reserved_bytes"])]),
                _rate(result["flops_per_second"]),
                f"{result['share_of_matmul']:.0%}",
                f"{result['share_of_copy']:.0%}",
            ]
        )
    header = ["", "dtype", "of", "median", "times as fast", f"than its {WIDEST}", "memory"]
    reserved = ["reserved"] if record["machine"]["device"] == "cuda" else []
    return _table([*header, *reserved, "FLOP/s", "of matmul", "of copy"], lines) + _LEGEND


def _errors(errors: Record) -> str:
    lines = [
        [output["direction"], output["dtype"], output["implementation"]]
        + [f"{output[name]:.2e}" for name in ("mean", "first", "last", "worst", "scale")]
        for output in errors["outputs"]
    ]
    heading = f"Root mean square error of raw latents and frames against {errors['reference']}:\n"
    return heading + _table(["", "dtype", "of", "mean", "first", "last", "worst", "scale of output"], lines)


def _profile(profile: Record, kind: str) -> str:
    entries = profile[kind]
    total = sum(entry["seconds"] for entry in entries)
    shown, others = entries[:_LARGEST_ENTRIES], entries[_LARGEST_ENTRIES:]
    if others:
        rest = {name: sum(entry[name] for entry in others) for name in ("seconds", "calls")}
        shown = [*shown, {"name": f"({len(others)} others)", **rest}]
    lines = [
        [
            f"{entry['seconds'] / total:.1%}",
            f"{1e3 * entry['seconds']:.1f} ms",
            str(entry["calls"]),
            entry["name"][:_LONGEST_NAME],
        ]
        for entry in shown
    ]
    heading = f"Where {profile['direction']} in {profile['dtype']} spends its {total:.3f} s, by {kind}:\n"
    return heading + _table(["share", "time", "calls", "name"], lines)


def _rate(flops_per_second: float) -> str:
    if flops_per_second < 1e12:
        return f"{flops_per_second / 1e9:.1f} GFLOP/s"
    return f"{flops_per_second / 1e12:.1f} TFLOP/s"


def _table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in (header, *lines)
    )


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
