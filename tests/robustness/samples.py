"""Whole inputs of every kind that commands read, a few kilobytes each."""

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image

from tests.helpers import small_config
from wan_vae import WanVAE
from wan_vae.files import encode_file
from wan_vae.interchange import read_latents, write_latents

FRAMES = 9
WIDTH, HEIGHT = 48, 32


class Sample(NamedTuple):
    """A whole input."""

    path: Path
    frames: int = 0  # 0 for checkpoints


def make_samples(folder: Path) -> dict[str, list[Sample]]:
    """Write the samples into an empty folder and return them by class; formats that cannot be written are left out."""
    checkpoint = folder / "small.safetensors"
    torch.manual_seed(0)
    vae = WanVAE.from_config(
        small_config(latent_channels=4, width_multipliers=(1, 2, 2, 2), temporal_downsample=(True, True, False))
    )
    vae.save(checkpoint)
    weights = vae.state_dict()
    torch.save(weights, folder / "small.pth")
    torch.save({"state_dict": weights, "step": 7}, folder / "nested.ckpt")
    torch.save(weights, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    vae.save(folder / "diffusers", layout="diffusers")
    found: dict[str, list[Sample]] = {
        "safetensors": [Sample(checkpoint), Sample(folder / "diffusers" / "diffusion_pytorch_model.safetensors")],
        "pickle": [Sample(folder / name) for name in ("small.pth", "nested.ckpt", "legacy.pth")],
        "video": [],
        "image": [],
    }
    for name, codec, pixel_format in VIDEOS:
        if codec in av.codecs_available:
            found["video"].append(Sample(_write_video(folder / name, codec, pixel_format), FRAMES))
    pictures = [Image.fromarray(picture) for picture in _pictures()]
    for name, count, options in IMAGES:
        path = folder / name
        try:
            pictures[0].save(
                path, **options, **({"save_all": True, "append_images": pictures[1:count]} if count > 1 else {})
            )
        except (KeyError, OSError, ValueError):  # a Pillow without this format
            path.unlink(missing_ok=True)
            continue
        found["image"].append(Sample(path, count))
    av_png = folder / "deep.png"
    _write_deep_png(av_png)
    found["image"].append(Sample(av_png, 1))
    latents = folder / "clip.latents.safetensors"
    with torch.inference_mode():
        encode_file(found["video"][0].path, latents, vae.eval())
    found["latents"] = [Sample(latents, FRAMES)]
    names = [f"latents.{extension}" for extension in ("latent", "pt", "npy")]
    for name in names:
        write_latents(folder / name, read_latents(latents, vae.config), vae.config)
    found["foreign"] = [Sample(folder / name, FRAMES) for name in names]
    return found


VIDEOS = [
    ("h264.mp4", "libx264", "yuv420p"),
    ("mpeg4.mp4", "mpeg4", "yuv420p"),
    ("h264.mkv", "libx264", "yuv420p"),
    ("ffv1.mkv", "ffv1", "yuv420p"),
    ("vp9.webm", "libvpx-vp9", "yuv420p"),
    ("vp8.webm", "libvpx", "yuv420p"),
    ("mjpeg.avi", "mjpeg", "yuvj420p"),
    ("mpeg4.avi", "mpeg4", "yuv420p"),
    ("raw.avi", "rawvideo", "bgr24"),
    ("prores.mov", "prores_ks", "yuv422p10le"),
    ("h264.ts", "libx264", "yuv420p"),
]
IMAGES: list[tuple[str, int, dict[str, Any]]] = [
    ("still.png", 1, {}),
    ("still.jpg", 1, {"quality": 95}),
    ("still.bmp", 1, {}),
    ("still.tif", 1, {"compression": "tiff_deflate"}),
    ("still.webp", 1, {"lossless": True}),
    ("still.avif", 1, {}),
    ("animation.gif", FRAMES, {"duration": 40, "loop": 0}),
    ("animation.webp", FRAMES, {"duration": 40, "lossless": True}),
    ("animation.png", FRAMES, {"duration": 40}),
    ("animation.avif", FRAMES, {"duration": 40}),
]


def _pictures() -> list[np.ndarray]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return [
        np.stack([rows * 7 + number * 9, columns * 5 + number * 4, rows + columns + number * 20], -1).astype(np.uint8)
        for number in range(FRAMES)
    ]


def _write_video(path: Path, codec: str, pixel_format: str) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(25), options={"g": "4"} if codec != "ffv1" else {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        for picture in _pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return path


def _write_deep_png(path: Path) -> None:
    context: Any = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = WIDTH, HEIGHT, "rgb48be", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(_pictures()[0].astype(np.uint16) * 257, "rgb48le").reformat(format="rgb48be")
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
