"""Pass a long clip through both streams: is memory flat, and does a stream that moved go on with the same bytes?"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.cli import main, options
from wan_vae.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(name="measure_stream", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
REPORTED_EVERY = 50
LARGEST_CHANGE = 0.02


@app.command()
def measure_stream(
    frames: Annotated[
        int, typer.Option(min=100, help="How many, pushed one by one; the last latent is made whole.")
    ] = 2000,
    side: Annotated[int, typer.Option(min=16, help="Height and width.")] = 256,
    saved_at: Annotated[int, typer.Option(min=1, help="After how many frames the state is saved.")] = 500,
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    resume: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Encode and decode FRAMES frames; go on from the state at SAVED_AT in a new process, and compare all after it."""
    if resume is not None:
        typer.echo(json.dumps(passed(frames, side, checkpoint, resume=resume).digests))
        return
    if saved_at >= frames:
        raise UserError(f"Nothing comes after frame {saved_at} of {frames}; give a smaller --saved-at.")
    with TemporaryDirectory() as name:
        run = passed(frames, side, checkpoint, saved_at=saved_at, folder=Path(name))
        arguments = ["--frames", str(frames), "--side", str(side), "--checkpoint", checkpoint, "--resume", name]
        again = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE)
    settled = [size for frame, size in run.peaks.items() if frame > REPORTED_EVERY]
    change = max(settled) / min(settled) - 1
    typer.echo(f"From frame {REPORTED_EVERY} on, the most that was resident differs by {100 * change:.2f} % at most.")
    same = json.loads(again.stdout) == run.digests
    typer.echo(
        f"Saved at frame {saved_at} and resumed in a new process, the {run.digests['latents']} latents and"
        f" {run.digests['frames']} frames after that are {'the same bytes' if same else 'OTHER BYTES'}."
    )
    if change > LARGEST_CHANGE or not same:
        raise typer.Exit(1)


class Run(NamedTuple):
    """What came after the state, and the most bytes that were resident in each fifty frames, by the last of them."""

    digests: dict[str, int | str]
    peaks: dict[int, int]


def passed(
    frames: int,
    side: int,
    checkpoint: str,
    *,
    resume: Path | None = None,
    saved_at: int | None = None,
    folder: Path | None = None,
) -> Run:
    """Pass the clip through both streams, from its start or from the states in `resume`; write states to `folder`."""
    import torch
    from safetensors.torch import load_file, save_file

    from wan_vae import DecodeStream, EncodeStream, WanVAE
    from wan_vae.ops.cpu.build import ensure_kernels

    ensure_kernels()
    peaks: dict[int, int] = {}
    latents_digest, frames_digest, counts = hashlib.sha256(), hashlib.sha256(), [0, 0]
    vae = WanVAE.from_pretrained(checkpoint)
    with EncodeStream(vae) as encoder, DecodeStream(vae) as decoder:
        if resume is not None:
            encoder.load_state_dict(load_file(resume / "encoder.safetensors"))
            decoder.load_state_dict(load_file(resume / "decoder.safetensors"))
        whole = frames + -(frames - 1) % vae.config.temporal_compression
        for frame in moving_waves(encoder.position, whole, side):
            latents = encoder.push(frame)
            if latents is not None:
                video = decoder.push(latents)
                latents_digest.update(latents.contiguous().view(torch.uint8).numpy())
                frames_digest.update(video.contiguous().view(torch.uint8).numpy())
                counts = [counts[0] + latents.shape[2], counts[1] + video.shape[2]]
            if encoder.position == saved_at:
                save_file(encoder.state_dict(), folder / "encoder.safetensors")
                save_file(decoder.state_dict(), folder / "decoder.safetensors")
                latents_digest, frames_digest, counts = hashlib.sha256(), hashlib.sha256(), [0, 0]
                resident_bytes()  # a state is a copy, and no part of what is measured
            if encoder.position % REPORTED_EVERY == 0 and resume is None:
                peaks[encoder.position], now = resident_bytes()
                typer.echo(
                    f"frame {encoder.position:6d}: {now / 2**20:6.1f} MiB resident,"
                    f" {peaks[encoder.position] / 2**20:6.1f} MiB at most since the last line"
                )
    digests = {
        "latents": counts[0],
        "latents_digest": latents_digest.hexdigest(),
        "frames": counts[1],
        "frames_digest": frames_digest.hexdigest(),
    }
    return Run(digests, peaks)


def resident_bytes() -> tuple[int, int]:
    """Return the most that was resident since the last call, and what is now, as Linux counts it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak, now = (1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmHWM", "VmRSS"))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak, now


def moving_waves(start: int, stop: int, side: int) -> Iterator["Tensor"]:
    """Yield frames `start` to `stop`, (1, 3, 1, side, side), each a function of its index alone."""
    import torch

    rows = torch.arange(side, dtype=torch.float32).view(side, 1)
    columns = torch.arange(side, dtype=torch.float32).view(1, side)
    pitch = torch.tensor([0.05, 0.11, 0.23]).view(3, 1, 1)
    for index in range(start, stop):
        waves = torch.sin(pitch * (rows + 1.7 * index)) * torch.cos(pitch * (columns - 0.6 * index))
        yield waves.view(1, 3, 1, side, side)


if __name__ == "__main__":
    main(program=app)
