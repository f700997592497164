"""What was measured, as tables for people."""

from collections.abc import Sequence
from typing import Any

from wan_vae.benchmark.implementations import OURS
from wan_vae.benchmark.record import WIDEST, Record

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
