"""`wan-vae reconstruct`: a clip to latents and back, to see and to measure what the model keeps."""

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.report import Progress, peak_memory, print_result
from wan_vae.files import check_output

if TYPE_CHECKING:
    from wan_vae.fitting import Frames


def reconstruct(
    clip: Annotated[Path, typer.Argument(help="A video, an animation, an image, or a folder of images.")],
    out: Annotated[Path, typer.Argument(help="The clip to write: mp4, mkv, webm, mov, avi, gif, webp, or a folder.")],
    checkpoint: options.CheckpointOption,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    size: options.SizeOption = None,
    frames: options.FramesOption = None,
    fps: options.FpsOption = None,
    lossless: options.LosslessOption = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Encode CLIP and decode it again into OUT, and print how close they are.

    PSNR and SSIM compare the decoded frames with the source's, before OUT is compressed. Sound is carried over where
    OUT's format can hold it.
    """
    check_output(out, overwrite=overwrite, inputs=(clip, Path(checkpoint)), may_be_folder=not out.suffix)

    import torch

    from wan_vae.cli.model import load_model
    from wan_vae.fitting import FittedClip, video_to_frames
    from wan_vae.metrics import Fidelity
    from wan_vae.video import create_clip

    with options.open_selected(clip, size, frames, fps) as source, torch.inference_mode():
        if source.info.bit_depth > 8:
            logging.getLogger("wan_vae").warning(
                f"{clip} has {source.info.bit_depth} bits a channel; {out} is written with 8."
            )
        vae = load_model(checkpoint, device, dtype).vae
        config, info = vae.config, source.info
        width, height = info.width * config.output_upscale, info.height * config.output_upscale
        fidelity = Fidelity() if config.output_upscale == 1 else None
        progress, originals = Progress(info.frames), _Queue()
        fitted = FittedClip(
            originals.passing(progress.over(source.chunks(config.temporal_compression))), config, vae.device
        )
        with create_clip(
            out,
            width=width,
            height=height,
            fps=info.fps,
            color=info.color,
            pixel_aspect=info.pixel_aspect,
            lossless=lossless,
            audio=source.audio,
        ) as writer:
            written = 0
            for video in vae.decode_stream(vae.encode_stream(fitted)):
                # Padded frames come out only after the last true one went in.
                decoded = video_to_frames(video, width, height)[: fitted.frames - written]
                for frame in decoded:
                    original = originals.take()
                    if fidelity is not None:
                        fidelity.update(original[None], frame[None])
                writer.write(decoded)
                written += len(decoded)
    psnr = None if fidelity is None else fidelity.psnr()
    result = {
        "output": out,
        "frames": written,
        "size": f"{width}x{height}",
        "fps": info.fps,
        # JSON has no infinity.
        "psnr": "infinite" if psnr == math.inf else psnr,
        "ssim": None if fidelity is None else fidelity.ssim(),
        "frames_per_second": progress.frames_per_second(),
        "peak_memory": peak_memory(vae.device),
    }
    print_result(result, as_json=as_json)


class _Queue:
    """Frames on their way through the network, kept until their reconstruction comes out."""

    def __init__(self) -> None:
        self._waiting: deque[Frames] = deque()

    def passing(self, chunks: "Iterable[Frames]") -> "Iterator[Frames]":
        for chunk in chunks:
            self._waiting.extend(chunk)
            yield chunk

    def take(self) -> "Frames":
        return self._waiting.popleft()
