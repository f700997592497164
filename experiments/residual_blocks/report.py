"""An ablation as tables: CSV for machines, Markdown for people, and the parts of a document that show it."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from experiments.residual_blocks.claims import Verdict, share
from experiments.residual_blocks.probes import BlockProbe
from experiments.residual_blocks.study import Study
from wan_vae.errors import UserError

Row = dict[str, Any]


def rows(study: Study) -> list[Row]:
    """Return one row for each network: what it is, what it costs, how it fared (mean, least and most over seeds)."""
    groups = [("the grid", entry) for entries in study.by_depth.values() for entry in entries]
    groups += [("the standard width", study.narrow)]
    groups += [("a small set", entry) for entry in study.small_set.values()]
    groups += [("several rates", entry) for by_rate in study.by_rate.values() for entry in by_rate.values()]
    return [
        {
            "group": group,
            "kind": entry.network.kind,
            "layers": entry.network.layers,
            "width": entry.network.width,
            "parameters": entry.cost.parameters,
            "multiply_adds": entry.cost.multiply_adds,
            "learning_rate": entry.learning_rate,
            **_over_seeds("step_milliseconds", [1000 * one.seconds[-1] / one.steps[-1] for one in entry.results]),
            **_over_seeds("psnr", entry.final_psnr),
            **_over_seeds("gradient_spike", [result.spike for result in entry.results]),
            **_over_seeds("gradient_share_at_start", share(entry)),
            **_over_seeds("gradient_share_at_end", share(entry, trained=True)),
            **_over_seeds("identity_distance_at_start", [_distance(result.start) for result in entry.results]),
            **_over_seeds("identity_distance_at_end", [_distance(result.end) for result in entry.results]),
        }
        for group, entry in groups
    ]


def _over_seeds(name: str, values: Sequence[float]) -> Row:
    return {name: mean(values), f"{name}_least": min(values), f"{name}_most": max(values)}


def _distance(blocks: Sequence[BlockProbe]) -> float:
    return median(block.identity_distance for block in blocks if block.identity_distance is not None)


def write_csv(study: Study, path: Path) -> None:
    """Write `rows` with a header."""
    table = rows(study)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def markdown_table(study: Study) -> str:
    """Return `rows` as Markdown tables, one for each group, and one for the synthetic tasks."""
    columns: dict[str, Callable[[Row], str]] = {
        "block": lambda row: row["kind"],
        "layers": lambda row: str(row["layers"]),
        "width": lambda row: str(row["width"]),
        "parameters, thousands": lambda row: f"{row['parameters'] / 1e3:.0f}",
        "multiply-adds, millions": lambda row: f"{row['multiply_adds'] / 1e6:.1f}",
        "step, CPU ms": lambda row: _shown(row, "step_milliseconds"),
        "learning rate": lambda row: f"{row['learning_rate']:g}",
        "PSNR, dB": lambda row: _shown(row, "psnr"),
        "largest gradient / median": lambda row: _shown(row, "gradient_spike"),
        "gradient first/last, start": lambda row: _shown(row, "gradient_share_at_start"),
        "end": lambda row: _shown(row, "gradient_share_at_end"),
        "identity distance, start": lambda row: _shown(row, "identity_distance_at_start"),
        "end ": lambda row: _shown(row, "identity_distance_at_end"),
    }
    headings = {
        "the grid": "Equal layers, about equal parameters",
        "the standard width": "A bottleneck with as many channels between blocks as the standard network",
        "a small set": "Trained on few pictures",
        "several rates": "At several learning rates",
    }
    parts = []
    table = rows(study)
    for group, heading in headings.items():
        lines = [[shown(row) for shown in columns.values()] for row in table if row["group"] == group]
        parts.append(f"**{heading}**\n\n{_markdown(list(columns), lines)}")
    errors = [
        [task, kind, _plainly([result.start for result in results]), _plainly([result.end for result in results])]
        for task, kinds in study.stacks.items()
        for kind, results in kinds.items()
    ]
    heading = "**Synthetic tasks**, error relative to the data's spread"
    parts.append(f"{heading}\n\n{_markdown(['task', 'block', 'at the start', 'in the end'], errors)}")
    parts.append(f"The mean color of all held-out pictures, everywhere, has a PSNR of {study.constant_psnr:.2f} dB.\n")
    return "\n".join(parts)


def markdown_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return a table of all verdicts, then each with its sentence, rule and figures, as Markdown."""
    parts = [_markdown(["claim", "verdict"], [[one.title, f"**{one.outcome}**"] for one in verdicts])]
    parts += [
        f"### {one.title}: {one.outcome}\n\n> {one.source}\n>\n> {one.translation}\n\n"
        f"- Rule: {one.rule}\n- Figures: {one.figures}\n"
        for one in verdicts
    ]
    return "\n".join(parts)


def _shown(row: Row, name: str) -> str:
    return _plainly([row[name], row[f"{name}_least"], row[f"{name}_most"]], summarized=True)


def _plainly(values: Sequence[float], *, summarized: bool = False) -> str:
    middle, least, most = values if summarized else (mean(values), min(values), max(values))
    return f"{middle:.3g} ({least:.3g} to {most:.3g})" if middle < 10 else f"{middle:.2f} ({least:.2f} to {most:.2f})"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.strip() for cell in cells)} |\n"

    return line(header) + line(["---"] * len(header)) + "".join(map(line, lines))


def check_marks(document: Path, names: Sequence[str]) -> None:
    """Refuse a document that has no place for one of the named parts.

    Raises:
        UserError: There is no such document, or it lacks the marks.
    """
    if not document.is_file():
        raise UserError(f"There is no document {document}; create it, with the marks {', '.join(_marks(names))}.")
    text = document.read_text(encoding="utf-8")
    for name in names:
        if not _place(name).search(text):
            raise UserError(f"{document} has no place for its {name}: it lacks {' and '.join(_marks([name]))}.")


def filled(text: str, parts: Mapping[str, str]) -> str:
    """Return a document with what stands between the marks of each part replaced."""
    for name, part in parts.items():
        opening, closing = _marks([name])
        text = _place(name).sub(lambda _, new=f"{opening}\n\n{part}\n{closing}": new, text)  # type: ignore[misc]
    return text


def _marks(names: Sequence[str]) -> list[str]:
    return [mark for name in names for mark in (f"<!-- {name} -->", f"<!-- end of {name} -->")]


def _place(name: str) -> re.Pattern[str]:
    opening, closing = map(re.escape, _marks([name]))
    return re.compile(f"{opening}.*?{closing}", re.DOTALL)
