"""The record of a benchmark as tables in plain text."""

from collections.abc import Sequence
from typing import Any

from wan_vae.benchmark.implementations import DIFFUSERS, OPENVINO, WAN_VAE
from wan_vae.benchmark.record import BASELINE_DTYPE, Record

NOT_MEASURED = "not measured"
_LARGEST_ENTRIES = 15
_LONGEST_NAME = 90
_LEGEND = "Memory is what a call adds. FLOP/s and shares count convolutions and matrix products alone.\n"


def report(record: Record) -> str:
    """Return all tables of a benchmark; each line ends in a newline."""
    parts = [_heading(record), _speed(record)]
    if record["errors"] is not None:
        parts.append(_errors(record["errors"]))
    parts += [_profile(profile, kind) for profile in record["profiles"] or () for kind in ("layers", "operations")]
    return "\n".join(parts)


def find_ratio(record: Record, direction: str, dtype: str, against: str, over: str = DIFFUSERS) -> str:
    """Return a ratio with its range, such as "1.84 (1.80 to 1.90)"; "" if it was not measured."""
    for ratio in record["ratios"]:
        # Up to 0.2.0 there was one other implementation, which records did not name.
        found = (ratio["direction"], ratio["dtype"], ratio["against"], ratio.get("over", DIFFUSERS))
        if found == (direction, dtype, against, over):
            return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
    return ""


def describe_weights(record: Record) -> str:
    """Return the seed of a model's weights, or the start of their digest."""
    weights: str = record["model"]["weights"]
    return weights[: len("SHA-256 ") + 12]


def _heading(record: Record) -> str:
    clip, machine, ceilings = record["clip"], record["machine"], record["ceilings"]
    products = ", ".join(f"{_rate(value)} in {name}" for name, value in ceilings["matmul_flops_per_second"].items())
    return (
        f"{record['model']['name']} (weights: {describe_weights(record)}), {clip['frames']} frames of"
        f" {clip['width']}x{clip['height']}, on {machine['name']}, {machine['threads']} of {machine['cores']} cores,"
        f" torch {record['torch']}.\n"
        f"At best, matrix products reach {products}; copies, {ceilings['copy_bytes_per_second'] / 1e9:.1f} GB/s.\n"
    )


def _speed(record: Record) -> str:
    on_cuda = record["machine"]["device"] == "cuda"
    memory = {"memory": "peak_bytes"} | ({"reserved": "peak_reserved_bytes"} if on_cuda else {})
    over_openvino = {"than openvino": OPENVINO} if record.get(OPENVINO) else {}
    lines = []
    for result in record["results"]:
        direction, dtype, name = result["direction"], result["dtype"], result["implementation"]
        ratios = [find_ratio(record, direction, dtype, against) for against in (dtype, BASELINE_DTYPE)]
        ratios += [find_ratio(record, direction, dtype, dtype, peer) for peer in over_openvino.values()]
        lines.append(
            [
                *(direction, dtype, name, f"{result['median_seconds']:.3f} s"),
                *(ratios if name == WAN_VAE else [""] * len(ratios)),
                *(NOT_MEASURED if result[key] is None else f"{result[key] / 2**20:.0f} MiB" for key in memory.values()),
                _rate(result["flops_per_second"]),
                *(f"{result[share]:.0%}" for share in ("share_of_matmul", "share_of_copy")),
            ]
        )
    header = ["", "dtype", "of", "median", "times as fast", f"than its {BASELINE_DTYPE}", *over_openvino, *memory]
    return _table([*header, "FLOP/s", "of matmul", "of copy"], lines) + _LEGEND


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
        [f"{seconds / total:.1%}", f"{1e3 * seconds:.1f} ms", str(entry["calls"]), entry["name"][:_LONGEST_NAME]]
        for entry in shown
        for seconds in (entry["seconds"],)
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
