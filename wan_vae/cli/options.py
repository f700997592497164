"""Options that commands share, and how their values are read."""

import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from wan_vae.errors import UserError

if TYPE_CHECKING:
    import torch


Device = Literal["auto", "cpu", "cuda", "mps"]
"""Where the model computes."""

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
"""The dtype that the model computes in."""

Layout = Literal["wan", "diffusers"]
"""The naming of weights in a checkpoint."""

Values = Literal["raw", "normalized"]
"""What latents are: what the network emits, or that minus the mean and over the standard deviation."""

Fit = Literal["stretch", "crop", "pad"]
"""What is done with a clip of another shape than the size."""

LatentsFormat = Literal["wan-vae", "comfyui", "musubi", "fastvideo", "tensor"]
"""A format of latents files that is written."""


def parse_dtype(text: str) -> Precision:
    """Read "bf16", or the name that torch has for it, "bfloat16"."""
    name = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(text, text)
    if name not in get_args(Precision):
        raise typer.BadParameter(f"{text!r} is none of {', '.join(get_args(Precision))}")
    return cast(Precision, name)


DEFAULT_CHECKPOINT = "nano"
CheckpointOption = Annotated[
    str,
    typer.Option(
        help="A checkpoint file in any layout, a diffusers folder, or a name: nano (in the package), wan2.1, wan2.2,"
        " qwen-image, qwen-image-layered, qwen-image-2.1, lightvae (from the Hugging Face hub). Files of tiny"
        " autoencoders (taew2_1, taew2_2) are quick; `cache` does not take them.",
        metavar="NAME|PATH",
    ),
]
CheckpointValuesOption = Annotated[
    Values | None,
    typer.Option(
        help="What latents a tiny autoencoder works on, which no file tells; default by its name, lighttae* raw and all"
        " others normalized."
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute; auto is an NVIDIA or AMD GPU if there is one.")]
DtypeOption = Annotated[
    Precision,
    typer.Option(
        help="The dtype to compute in; auto is bf16 where that is fast, except that CPUs encode in fp32. tf32 is fp32"
        " whose convolutions NVIDIA GPUs may round to TF32.",
        metavar="|".join(get_args(Precision)),
        parser=parse_dtype,
    ),
]
ClipSizeOption = Annotated[
    str | None,
    typer.Option(help="Scale the clip to this size; 640x and x360 keep its shape.", metavar="WIDTHxHEIGHT"),
]
FitOption = Annotated[
    Fit | None,
    typer.Option(
        help="Where --size has another shape: stretch the clip (default, with a notice), crop it or pad it with black."
    ),
]
FramesOption = Annotated[
    str | None, typer.Option(help="Frames A to B - 1 only, counted from 0 at the rate of --fps.", metavar="A:B")
]
FpsOption = Annotated[
    str | None, typer.Option(help="Resample the clip to this rate, such as 30000/1001.", metavar="RATE")
]
LengthOption = Annotated[
    int | None,
    typer.Option(help="So many frames only, at the rate of --fps; with --frames A: from there.", metavar="N", min=1),
]
PosteriorOption = Annotated[
    bool,
    typer.Option(
        "--posterior", help="Also store the log-variance of the latents, to sample from; only in a wan-vae file."
    ),
]
LpipsOption = Annotated[
    Path | None,
    typer.Option(
        help="Also measure LPIPS, with this file of AlexNet trained on ImageNet: safetensors, torchvision's names."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="CPU threads of the network; default torch's choice: all cores, or with torchrun one for each process.",
        metavar="N",
        min=1,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
MemoryOption = Annotated[
    str,
    typer.Option(
        help="Memory for the network in addition to the model and its input, result included: such as 4GiB, or auto for"
        " four fifths of the free memory. Where whole pictures need more, they pass tile by tile, which takes longer"
        " and gives the same up to rounding. Of several processes it is the memory of each.",
        metavar="SIZE",
    ),
]
LosslessOption = Annotated[bool, typer.Option("--lossless", help="Write the clip's pixels exactly.")]
ShardsOption = Annotated[
    int,
    typer.Option(
        help="Share the clip among this many processes, one per device: torchrun --nproc-per-node N -m wan_vae ...",
        metavar="N",
        min=1,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and the result.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Print what is being done, line by line.")]


def parse_size(text: str | None, option: str = "--size") -> tuple[int, int] | None:
    """Read "640x360" as width and height; messages name the option."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
    if match is None:
        raise UserError(f"{option} is {text!r}; write it as WIDTHxHEIGHT, such as 640x360.")
    return int(match[1]), int(match[2])


def parse_clip_size(text: str | None) -> tuple[int | None, int | None] | None:
    """Read "640x360", or "640x" or "x360", whose other side is None."""
    match = re.fullmatch(r"(\d{1,9})x|x(\d{1,9})", text or "")
    if match is None:
        return parse_size(text)
    width, height = (int(side) if side else None for side in match.groups())
    return width, height


def parse_selection(
    size: str | None, fit: Fit | None, frames: str | None, fps: str | None, length: int | None
) -> dict[str, Any]:
    """Read the options that select frames of a clip and their size, as arguments of functions that open one."""
    return {
        "size": parse_clip_size(size),
        "fit": fit,
        "frames": parse_frames(frames),
        "fps": parse_fps(fps),
        "length": length,
    }


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


_MOST_THREADS = 1024


def set_threads(count: int | None) -> None:
    """Have torch compute with this number of CPU threads; None is its own choice."""
    if count is not None:
        if count > _MOST_THREADS:
            raise UserError(f"--threads is {count}; it is at most {_MOST_THREADS}, and best the number of cores.")
        import torch

        torch.set_num_threads(count)


def torch_device(device: Device) -> "torch.device":
    """Return the device asked for; a UserError if this machine, or this build of torch, has none."""
    import torch

    from wan_vae.validation import best_device

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return best_device()
    if not available[device]:
        present = " and ".join(name for name, has in available.items() if has)
        raise UserError(f"--device {device} is not available to torch {torch.__version__} here; {present} is.")
    return torch.device(device)
