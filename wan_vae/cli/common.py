"""What commands share: the model, progress, the report, and the process's memory."""

import ctypes
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wan_vae.cli import signals
from wan_vae.cli.distributed import agree, is_main, join
from wan_vae.cli.options import Device, Precision, Values, torch_device
from wan_vae.errors import UserError, printable

if TYPE_CHECKING:
    from wan_vae.files import FileResult
    from wan_vae.sharding import ShardedVAE
    from wan_vae.tiny import TinyVAE
    from wan_vae.vae import WanVAE


def load_model(
    checkpoint: str | Path, *, device: Device, dtype: Precision, values: Values | None = None
) -> "WanVAE | TinyVAE":
    """Load a checkpoint as `--checkpoint`, `--device`, `--dtype` and `--checkpoint-values` ask."""
    from wan_vae.tiny import load_vae

    keep_freed_memory()
    logging.getLogger("wan_vae").info(f"loading {checkpoint}")
    raw = None if values is None else values == "raw"
    return load_vae(checkpoint, raw=raw, device=torch_device(device), dtype=dtype)


def encoder_dtype(device: Device, dtype: Precision) -> str:
    """Return the name of the dtype that `load_model` gives the encoder."""
    from wan_vae.validation import choose_dtypes

    return str(choose_dtypes(dtype, torch_device(device)).encoder).removeprefix("torch.")


def model_loader(
    device: Device, dtype: Precision, shards: int, values: Values | None
) -> "Callable[[str | Path], WanVAE | TinyVAE] | Callable[[str | Path], ShardedVAE]":
    """Return a function that loads a checkpoint as the options ask; for several shards, join the other processes.

    A UserError if the processes were not started, or there are no devices for them.
    """
    if shards == 1:
        return partial(load_model, device=device, dtype=dtype, values=values)
    join(shards, device)
    return partial(_load_sharded, device=device, dtype=dtype, values=values)


def _load_sharded(checkpoint: str | Path, **options: Any) -> "ShardedVAE":
    from wan_vae.vae import WanVAE

    vae = load_model(checkpoint, **options)
    if not isinstance(vae, WanVAE):
        raise UserError(f"{checkpoint} is a tiny autoencoder, the work of one process; leave --shards out.")
    return vae.shard()


def parse_bytes_of(text: str, option: str) -> int:
    """Return the bytes that the text of an option says.

    Raises:
        UserError: It says none.
    """
    from wan_vae.inference.budget import parse_size

    size = parse_size(text)
    if not size:
        raise UserError(f"{option} is {text!r}; write bytes, or a number with a unit such as 1GiB.")
    return size


def default_output(source: Path, suffix: str) -> Path:
    """Return the output in the working directory that is meant where only an input is named."""
    source = Path(os.path.abspath(source))  # noqa: PTH100  # `resolve` would name it after what a link leads to
    return Path((source.name if source.is_dir() else source.stem) + suffix)


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for later tensors, instead of returning it to the system.

    The same sizes come again with every pass through the network, and the page faults of fresh memory cost a third of
    the time. A library must not change its process like this; other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX of glibc's malloc.h
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


class Progress(ExitStack):
    """Shows what a command does on standard error; to be called with the frames (or `unit`s) done and in total.

    A context manager. From its first call on, signals wait for the next call, which raises KeyboardInterrupt.
    """

    def __init__(self, activity: str = "working", unit: str = "frame") -> None:
        super().__init__()
        self._activity, self._unit = activity, unit
        self._begun = False

    def __enter__(self) -> "Progress":
        from wan_vae.cli.messages import Bar

        super().__enter__()
        self._bar = self.enter_context(Bar(unit=self._unit))
        return self

    def __call__(self, done: int, total: int) -> None:
        if not self._begun:
            agree()
            self._begun = True
            self.enter_context(signals.deferred())
            self._bar.begin(self._activity, total)
        signals.check_interrupted()
        if done > self._bar.n:
            self._bar.update(done - self._bar.n)


def print_file_result(result: "FileResult", *, as_json: bool, **more: Any) -> None:
    """Print the result of a function of `wan_vae.files`, and more values after the output's path, in rank 0."""
    from wan_vae.inference.budget import peak_memory

    values = {
        "output": result.output,
        **more,
        "frames": result.frames,
        "size": f"{result.width}x{result.height}",
        "fps": result.fps,
        "frames_per_second": result.frames_per_second,
        "peak_memory": peak_memory(),
    }
    if is_main():
        print_result(values, as_json=as_json)


def print_result(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print named values as a table, which leaves out those that are None, or as one JSON object."""
    if as_json:
        typer.echo(json.dumps(values, default=str))
        return
    rows = [(_label(name), _format(name, value)) for name, value in values.items() if value is not None]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        typer.echo(f"{label:<{width}}  {printable(text)}")


def format_memory(size: int) -> str:
    """Return bytes as text for people: "1.92 GiB", or "34.1 MiB" for little."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


_LABELS = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "fps": "rate", "frames_per_second": "speed"}


def _label(name: str) -> str:
    return _LABELS.get(name) or " ".join(_LABELS.get(word, word) for word in name.split("_"))


def _format(name: str, value: Any) -> str:
    if name in ("peak_memory", "bytes"):
        return format_memory(value)
    if name == "fps":
        return f"{value if Fraction(value).denominator == 1 else f'{float(value):.3f} ({value})'} frames/s"
    if name == "frames_per_second":
        return f"{value:.1f} frames/s"
    if name.startswith("psnr"):
        return value if isinstance(value, str) else f"{value:.2f} dB"
    if name in ("seconds", "waited", "duration"):
        return f"{value:.1f} s"
    if name == "share_waited":
        return f"{100 * value:.0f} %"
    if name in ("latents", "shape"):
        return "x".join(str(side) for side in value)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10**5 else str(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return str(value)
