r"""How good a model is for the numbers it keeps: beside linear codes, smaller pictures and H.264, on a set of shots.

python -m experiments.evaluation.rate_distortion experiments/evaluation/configs/bench.yaml --clips CLIPS \
    --fit FOLDER --json rates.json --plot rates.png

The rate is in bits per pixel of a frame. Numbers of codes and of smaller pictures count 8 bits each, to which they are
rounded here, those of codes between the largest values of each channel in a shot; H.264 is what its file takes. Linear
codes are the principal components of blocks of 4 frames of 8x8 pixels of the clips in FOLDER, in the model's own linear
skip. The distortion is the mean over the shots of their PSNR.
"""

import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from experiments.evaluation.evaluate import Shot, read_evaluation_set, scaled_size
from wan_vae.cli import main, options
from wan_vae.config import load_config
from wan_vae.evaluation.metrics import Metrics
from wan_vae.io import open_clip
from wan_vae.io.atomic_output import check_distinct, check_output, written_beside
from wan_vae.io.color import UNSPECIFIED, RgbConverter, Scaler, eight_bits, frame_of, stored_color
from wan_vae.io.file_names import VIDEO_SUFFIXES
from wan_vae.training.data import list_files
from wan_vae.training.initialization import fit_linear_skip, init_for_training
from wan_vae.training.validation import with_latent_statistics
from wan_vae.vae import WanVAE

LINEAR_CODES = (4, 8, 16, 32, 64)
REDUCTIONS = (4, 6, math.sqrt(48), 8, 12)  # the third keeps as many numbers as 16 latents for 4 frames of 8x8 pixels
QUALITIES = (23, 28, 33, 38, 43)  # CRF
FIT_FRAMES, FIT_SIDE = 17, 256

Pictures = NDArray[np.uint8]  # (n, height, width, 3)
Point = tuple[float, float]  # bits per pixel, PSNR in dB

app = typer.Typer(name="rate_distortion", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def read(shot: Shot, short_side: int) -> Pictures:
    """Return a shot's frames, scaled, and cut to a size and a length that a model of Wan2.1's compression takes."""
    with open_clip(shot.clip) as clip:
        size = scaled_size(clip.info.width, clip.info.height, short_side)
    with open_clip(shot.clip, size=size, frames=(shot.start, shot.stop)) as clip:
        frames = np.concatenate([eight_bits(chunk) for chunk in clip.chunks(16)])
    count, height, width = frames.shape[:3]
    return frames[: count - (count - 1) % 4, : height - height % 8, : width - width % 8]


def as_video(frames: Pictures) -> Tensor:
    """(n, height, width, 3) -> (1, 3, n, height, width) in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def psnr(source: Pictures, decoded: Pictures) -> float:
    """Return the mean PSNR over the frames."""
    metrics = Metrics()
    for pair in zip(source, decoded, strict=True):
        metrics.add(*pair)
    return metrics.score().psnr


@torch.inference_mode()
def by_model(vae: WanVAE, frames: Pictures) -> Point:
    """Encode, round the normalized latents to 8 bits, and decode."""
    latents = vae.encode(as_video(frames))
    step = latents.abs().amax(dim=(0, 2, 3, 4), keepdim=True) / 127
    rounded = (latents / step).round() * step
    video = vae.decode(rounded)
    decoded = ((video[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
    return 8 * latents.numel() / frames[..., 0].size, psnr(frames, decoded)


def by_bicubic(reduction: float, frames: Pictures) -> Point:
    """Reduce every picture and enlarge it again."""
    height, width = frames.shape[1:3]
    small = max(1, round(width / reduction)), max(1, round(height / reduction))
    kept = [Image.fromarray(frame).resize(small, Image.Resampling.BICUBIC) for frame in frames]
    decoded = np.stack([np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) for picture in kept])
    return 8 * 3 * small[0] * small[1] / (width * height), psnr(frames, decoded)


def by_h264(quality: int, frames: Pictures) -> Point:
    """Write the frames by x264 with its slow preset, and read them."""
    file = io.BytesIO()
    height, width = frames.shape[1:3]
    # As players take a file without tags; FFmpeg's own conversion is off by several levels.
    color = stored_color(av.VideoFrame(width, height, "yuv420p"), UNSPECIFIED, UNSPECIFIED)
    to_yuv = Scaler(f"in_range=full:out_color_matrix={color.matrix}:out_range={color.range_name}", "yuv420p")
    with av.open(file, "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": str(quality), "preset": "slow"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, frame in enumerate(frames):
            converted = to_yuv(frame_of(frame))
            converted.pts = number
            container.mux(stream.encode(converted))
        container.mux(stream.encode())
    size = file.tell()
    file.seek(0)
    with av.open(file, format="h264") as container:
        shown = list(container.decode(video=0))
        to_rgb = RgbConverter(shown[0], UNSPECIFIED, UNSPECIFIED)
        decoded = np.stack([to_rgb(frame) for frame in shown])
    return 8 * size / frames[..., 0].size, psnr(frames, decoded)


def linear_code(values: int, fit: Sequence[Pictures]) -> WanVAE:
    """Return a model that is nothing but its linear skip, of so many values a block, for these clips."""
    changes = {"latent_mean": (0.0,) * values, "latent_std": (1.0,) * values, "encoder_width": 4, "decoder_width": 4}
    config = dataclasses.replace(load_config("nano"), latent_channels=values, linear_skip=True, **changes)
    vae = WanVAE(config).eval().requires_grad_(False)
    init_for_training(vae)
    fit_linear_skip(vae, map(as_video, fit))
    return with_latent_statistics(vae, fit)


@app.command()
def rate_distortion(
    bench: Annotated[
        Path, typer.Argument(help="The shots: a YAML file such as experiments/evaluation/configs/bench.yaml.")
    ],
    clips: Annotated[Path, typer.Option(help="The folder that the clips are in.")],
    fit: Annotated[Path, typer.Option(help="A folder of clips that linear codes are fitted to.")],
    json_file: Annotated[Path, typer.Option("--json", help="Write the result here.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the result here.")] = None,
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Measure bits per pixel and PSNR of a model, of linear codes, of smaller pictures and of H.264."""
    outputs = [json_file] if plot is None else [json_file, plot]
    for output in outputs:
        check_output(output, overwrite=overwrite, inputs=(bench,))
    check_distinct(*outputs)
    listed = read_evaluation_set(bench, clips)
    found = list_files(fit, VIDEO_SUFFIXES)
    fitted = [read(Shot(path, 20, 20 + FIT_FRAMES), FIT_SIDE) for path in found]
    model = WanVAE.from_pretrained(checkpoint, device="cpu", dtype="float32")
    linear_codes = [linear_code(values, fitted) for values in LINEAR_CODES]
    codes: dict[str, list[Callable[[Pictures], Point]]] = {
        checkpoint: [lambda frames: by_model(model, frames)],
        "linear code": [lambda frames, vae=vae: by_model(vae, frames) for vae in linear_codes],
        "smaller pictures, bicubic": [lambda frames, by=by: by_bicubic(by, frames) for by in REDUCTIONS],
        "H.264": [lambda frames, crf=crf: by_h264(crf, frames) for crf in QUALITIES],
    }
    shots = [read(shot, listed.short_side) for shot in listed.shots]
    points = {
        name: [tuple(np.mean([compute(frames) for frames in shots], axis=0).round(3).tolist()) for compute in ways]
        for name, ways in codes.items()
    }
    with written_beside(json_file, overwrite=overwrite) as beside:
        beside.write_text(json.dumps({"bits per pixel, PSNR (dB)": points}, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        with written_beside(plot, overwrite=overwrite) as beside:
            draw(points, beside)


def draw(points: dict[str, list[Point]], path: Path) -> None:
    """Draw a line for each code."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="bits per pixel", ylabel="PSNR (dB), mean of the shots")
    for name, line in points.items():
        axes.plot(
            *zip(*line, strict=True),
            marker="o" if len(line) > 1 else "*",
            label=name,
            markersize=5 if len(line) > 1 else 14,
        )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(program=app)
