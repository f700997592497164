"""The model that a command line asks for.

What commands print: progress while they run, and their result as a table or as JSON.

Errors that are about memory, told from others.

How the command line's process gets the memory of its tensors. A library must leave that to its user.

The compiled CPU kernels, which the command line builds for itself; a library must leave that to its user.
"""

import ctypes
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import typer

from wan_vae.cli.options import Device, Dtypes, Precision, torch_device, torch_dtypes
from wan_vae.errors import UserError

if TYPE_CHECKING:
    import torch

    from wan_vae.checkpoints import Checkpoint
    from wan_vae.io.frames import Frames
    from wan_vae.vae import WanVAE

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


def shortage(error: Exception) -> str | None:
    """Return what an error says of memory that was not there, in one line; None where it is about something else."""
    text = str(error)
    # Of all that torch raises, only what CUDA lacks has a class of its own.
    if not isinstance(error, MemoryError) and "memory" not in text:
        return None
    return text.partition("\n")[0] or type(error).__name__


# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones, instead of giving each back and mapping it afresh.

    The same sizes come again with every pass through the network, and the page faults of fresh memory cost a third of
    the time. Elsewhere than under glibc nothing is done.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def build_kernels_once() -> None:
    """Compile the CPU kernels, unless that was done before; it takes some seconds. Without a compiler it goes on."""
    from wan_vae.ops.cpu import build as native

    if native.library() is not None:
        return
    try:
        native.build_kernels()
    except UserError as error:
        reason = str(error).splitlines()[0]
        typer.echo(f"wan-vae: without the compiled CPU kernels, which are faster: {reason}", err=True)


class Model(NamedTuple):
    """A VAE on its device, and the checkpoint that it comes from."""

    vae: "WanVAE"
    checkpoint: "Checkpoint"

    @property
    def dtypes(self) -> Dtypes:
        """What the VAE's halves compute in."""
        return Dtypes(self.vae.dtype, self.vae.decoder_dtype)


def load_model(checkpoint: str | Path, device: Device, dtype: Precision) -> Model:
    """Load a checkpoint as `--checkpoint`, `--device` and `--dtype` ask."""
    from wan_vae.checkpoints import load_checkpoint
    from wan_vae.vae import WanVAE

    keep_freed_memory()
    on = torch_device(device)
    if on.type == "cpu":
        build_kernels_once()
    found = load_checkpoint(checkpoint)
    dtypes = torch_dtypes(dtype, on)
    vae = WanVAE.from_weights(found.config, found.weights, device=on)
    return Model(vae.set_dtypes(encoder=dtypes.encoder, decoder=dtypes.decoder), found)
