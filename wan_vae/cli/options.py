"""The options that commands share, and the words they are written in."""

import re
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from wan_vae.errors import UserError

if TYPE_CHECKING:
    import torch

    from wan_vae.io import Clip


class Device(str, Enum):
    """Where the network runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(str, Enum):
    """The dtype the network computes in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Layout(str, Enum):
    """How a checkpoint names its weights."""

    wan = "wan"
    diffusers = "diffusers"


DEFAULT_CHECKPOINT = "nano"
CheckpointOption = Annotated[
    str,
    typer.Option(
        help="A checkpoint file in any layout, a diffusers folder, or a name: nano (in the package), wan2.1, wan2.2,"
        " qwen-image, lightvae (from the Hugging Face hub).",
        metavar="NAME|PATH",
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute; auto takes a GPU if there is one.")]
DtypeOption = Annotated[
    Precision,
    typer.Option(help="What to compute in; auto is bf16 where that is fast, except that CPUs encode in fp32."),
]
SizeOption = Annotated[str | None, typer.Option(help="Scale the clip to this size first.", metavar="WIDTHxHEIGHT")]
FramesOption = Annotated[
    str | None, typer.Option(help="Take these frames only, counted from 0; B is not included.", metavar="A:B")
]
FpsOption = Annotated[
    str | None, typer.Option(help="Resample to this rate first, such as 24 or 30000/1001.", metavar="RATE")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
MemoryOption = Annotated[
    str,
    typer.Option(
        help="What the network may take beside the loaded model and what it is given, its result included: such as"
        " 4GiB, or auto for four fifths of what is free. Where whole pictures would take more they go tile by tile,"
        " which changes nothing but the time. With --shards it is what each process may take.",
        metavar="SIZE",
    ),
]
LosslessOption = Annotated[bool, typer.Option("--lossless", help="Write the clip's pixels exactly.")]
ShardsOption = Annotated[
    int,
    typer.Option(
        help="Share the clip among this many processes, one a device, started with: torchrun --nproc-per-node N -m"
        " wan_vae ...",
        metavar="N",
        min=1,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read "640x360" as width and height."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
    if match is None:
        raise UserError(f"--size is {text!r}; write it as WIDTHxHEIGHT, such as 640x360.")
    return int(match[1]), int(match[2])


def parse_frames(text: str | None) -> tuple[int | None, int | None]:
    """Read "10:41", "10:" or ":41" as the bounds of a slice."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(-?\d{1,9})?:(-?\d{1,9})?", text)
    if match is None:
        raise UserError(f"--frames is {text!r}; write it as A:B, such as 0:49.")
    start, stop = (int(bound) if bound else None for bound in match.groups())
    return start, stop


def parse_fps(text: str | None) -> Fraction | None:
    """Read "24", "23.976" or "30000/1001"."""
    if text is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9}|/0*[1-9]\d{0,8})?", text) is None:
        raise UserError(f"--fps is {text!r}; write a number or a fraction, such as 24 or 30000/1001.")
    return Fraction(text)


def open_selected(path: Path, size: str | None, frames: str | None, fps: str | None) -> "Clip":
    """Open a clip as `--size`, `--frames` and `--fps` ask."""
    selection = parse_size(size), parse_frames(frames), parse_fps(fps)

    from wan_vae.io import open_clip

    return open_clip(path, size=selection[0], frames=selection[1], fps=selection[2])


def torch_device(device: Device) -> "torch.device":
    """Return the device asked for.

    Raises:
        UserError: This machine, or this build of torch, has none.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is Device.auto:
        return torch.device(next(name for name, present in available.items() if present))
    if not available[device.value]:
        present = " and ".join(name for name, has in available.items() if has)
        raise UserError(f"--device {device.value} is not available to torch {torch.__version__} here; {present} is.")
    return torch.device(device.value)


class Dtypes(NamedTuple):
    """What the two halves of the network compute in."""

    encoder: "torch.dtype"
    decoder: "torch.dtype"

    def __str__(self) -> str:
        encoder, decoder = (str(dtype).removeprefix("torch.") for dtype in self)
        return encoder if encoder == decoder else f"{encoder} (encoder) and {decoder} (decoder)"


def torch_dtypes(dtype: Precision, device: "torch.device") -> Dtypes:
    """Return the dtypes asked for; auto is bfloat16 where it is fast and near lossless, float32 elsewhere.

    Latents, which are kept and trained on, are near lossless in float32 only; a GPU encodes in bfloat16 all the same.
    """
    import torch

    if dtype is not Precision.auto:
        both = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype.value]
        return Dtypes(both, both)
    if device.type == "cuda":
        return Dtypes(torch.bfloat16, torch.bfloat16)
    return Dtypes(torch.float32, torch.bfloat16 if device.type == "cpu" and _multiplies_bfloat16() else torch.float32)


def _multiplies_bfloat16() -> bool:
    import torch

    # Without these instructions bfloat16 is computed by way of float32, which is slower than float32 itself. Old
    # versions of torch cannot tell.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
