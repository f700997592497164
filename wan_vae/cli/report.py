"""What commands print: progress while they run, and their result as a table or as JSON."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    import torch

    from wan_vae.fitting import Frames

FramesType = TypeVar("FramesType", bound="Frames")


class Progress:
    """A progress bar over the frames of a clip, on standard error if that is a terminal, and the time they took."""

    def __init__(self, total: int | None) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="frame", disable=None, leave=False)
        self._start = time.perf_counter()
        self._frames = 0

    def over(self, chunks: Iterable[FramesType]) -> Iterator[FramesType]:
        """Count frames (n, height, width, 3) as they pass."""
        with self._bar:
            for chunk in chunks:
                yield chunk
                self._frames += len(chunk)
                self._bar.update(len(chunk))

    def frames_per_second(self) -> float:
        """Return the mean rate from the start until now."""
        return self._frames / (time.perf_counter() - self._start)


def peak_memory(device: "torch.device") -> int | None:
    """Return the most bytes held so far: allocated on a CUDA device, otherwise resident; None where it is not told."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def print_result(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print named values, as a table for people or as one JSON object; values of None are left out of the table."""
    if as_json:
        typer.echo(json.dumps(values, default=str))
        return
    width = max(len(name) for name in values)
    for name, value in values.items():
        if value is not None:
            typer.echo(f"{name.replace('_', ' '):<{width}}  {_readable(name, value)}")


def _readable(name: str, value: Any) -> str:
    if name == "peak_memory":
        return f"{value / 2**30:.2f} GiB"
    if isinstance(value, Fraction) and value.denominator != 1:
        return f"{value} ({float(value):.3f})"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return str(value)
