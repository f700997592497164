"""Time `wan-vae cache` against the loop that a user writes, with this library and with diffusers: same clips, in turn.

python scripts/make_clips.py clips --film --count 24
python scripts/measure_cache.py clips --size 256x144 --rounds 3
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.cli import main, options
from wan_vae.errors import UserError

app = typer.Typer(name="measure_cache", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def measure_cache(
    clips: Annotated[Path, typer.Argument(help="A folder of videos.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A file of weights; default random ones of Wan2.1.")] = None,
    size: Annotated[str, typer.Option(help="Of the encoded frames.")] = "256x144",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    cache_options: Annotated[str, typer.Option(help="More options of `wan-vae cache`, as one text.")] = "",
    side: Annotated[str | None, typer.Option(hidden=True)] = None,
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print the seconds of each side, and the median of their ratios over the rounds.

    Seconds are those of whole commands, loading included. diffusers runs in the first round alone, for it takes long.
    """
    pixels = options.parse_size(size)
    assert pixels is not None
    if side is not None:
        assert out is not None
        assert checkpoint is not None
        loop = {"loop": with_this_library, "diffusers": with_diffusers}[side]
        typer.echo(json.dumps(loop(sorted(clips.iterdir()), out, checkpoint, pixels)))
        return
    if not any(clips.glob("*")):
        raise UserError(f"{clips} has no clips; write some with scripts/make_clips.py.")
    with TemporaryDirectory() as name:
        folder = Path(name)
        if checkpoint is None:
            checkpoint = folder / "wan2.1.safetensors"
            write_checkpoint(checkpoint)
        seconds: dict[str, list[float]] = {"cache": [], "loop": [], "diffusers": []}
        waited = []
        for number in range(rounds):
            names = list(seconds) if number == 0 else ["loop", "cache"] if number % 2 else ["cache", "loop"]
            for name in names:
                output = folder / f"{name}{number}"
                begun = time.perf_counter()
                result = run(name, clips, output, checkpoint, size, cache_options.split())
                seconds[name].append(time.perf_counter() - begun)
                if name == "cache":
                    waited.append(result["share_waited"])
                rate = result["frames"] / seconds[name][-1]
                typer.echo(f"{name}: {seconds[name][-1]:.2f} s, {rate:.1f} frames/s", err=True)
        ratios = {
            f"{name}_over_cache": statistics.median(
                other / own for other, own in zip(seconds[name], seconds["cache"], strict=False)
            )
            for name in ("loop", "diffusers")
        }
        typer.echo(json.dumps({"seconds": seconds, **ratios, "share_computing": 1 - statistics.median(waited)}))


def run(side: str, clips: Path, out: Path, checkpoint: Path, size: str, cache_options: list[str]) -> dict[str, Any]:
    """Run one side in a process of its own."""
    if side == "cache":
        chosen = ["--checkpoint", str(checkpoint), "--size", size, "--dtype", "fp32", "--json", *cache_options]
        arguments = ["-m", "wan_vae", "cache", str(clips), str(out), *chosen]
    else:
        chosen = ["--checkpoint", str(checkpoint), "--size", size, "--side", side, "--out", str(out)]
        arguments = [__file__, str(clips), *chosen]
    printed = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed)


def write_checkpoint(path: Path) -> None:
    """Write random weights of Wan2.1 in diffusers' layout, which both sides load."""
    import torch

    from wan_vae import WanVAE

    torch.manual_seed(0)
    WanVAE.from_config("wan2.1").save(path, layout="diffusers")


def read(path: Path, size: tuple[int, int]) -> Any:
    """Decode a clip into a video (1, 3, T, H, W) in [-1, 1], as is usual: PyAV, scaled by FFmpeg."""
    import av
    import numpy as np
    import torch

    with av.open(str(path)) as container:
        frames = [
            frame.to_ndarray(format="rgb24", width=size[0], height=size[1]) for frame in container.decode(video=0)
        ]
    video = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).unsqueeze(0)
    return video.float() / 127.5 - 1


def with_this_library(clips: list[Path], out: Path, checkpoint: Path, size: tuple[int, int]) -> dict[str, int]:
    """The loop around `vae.encode`."""
    from safetensors.torch import save_file

    from wan_vae import WanVAE

    vae = WanVAE.from_pretrained(checkpoint)
    out.mkdir()
    count = 0
    for path in clips:
        video = read(path, size)
        save_file({"latents": vae.encode(video)}, out / f"{path.name}.safetensors")
        count += video.shape[2]
    return {"frames": count}


def with_diffusers(clips: list[Path], out: Path, checkpoint: Path, size: tuple[int, int]) -> dict[str, int]:
    """The loop around diffusers' VAE."""
    import torch
    from safetensors.torch import save_file

    from wan_vae import WanVAE

    vae = WanVAE.from_pretrained(checkpoint).to_diffusers()
    out.mkdir()
    count = 0
    for path in clips:
        video = read(path, size)
        with torch.inference_mode():
            latents = vae.encode(video).latent_dist.mode()
        save_file({"latents": latents.contiguous()}, out / f"{path.name}.safetensors")
        count += video.shape[2]
    return {"frames": count}


if __name__ == "__main__":
    main(program=app)
