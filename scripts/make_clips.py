"""Write clips of twelve kinds, good and bad, into a folder: the input of measurements and tests of `wan-vae cache`.

python scripts/make_clips.py clips --count 200
"""

import argparse
import random
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.io import create_clip


def pictures(draw: random.Random, frames: int, height: int, width: int) -> np.ndarray:
    """Return moving gradients with some texture, (frames, height, width, 3)."""
    time, row, column = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    speed = [draw.randint(1, 5) for _ in range(3)]
    levels = np.stack(
        [row * 3 + time * speed[0], column * 2 + time * speed[1], row + column + time * speed[2]], axis=-1
    )
    noise = np.random.default_rng(draw.randrange(2**32)).integers(0, 16, (1, height, width, 3))
    return ((levels + noise) % 256).astype(np.uint8)


def video(
    path: Path, draw: random.Random, *, frames: int, size: tuple[int, int], fps: Any = 25, **options: Any
) -> None:
    """Write a video."""
    with create_clip(path, width=size[0], height=size[1], fps=fps, **options) as writer:
        writer.write(pictures(draw, frames, size[1], size[0]))


def image(path: Path, draw: random.Random) -> None:
    """Write an image."""
    Image.fromarray(pictures(draw, 1, 48, 64)[0]).save(path)


def cut(path: Path, draw: random.Random) -> None:
    """Write a video that ends in the middle."""
    video(path, draw, frames=13, size=(64, 48))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def audio(path: Path, draw: random.Random) -> None:
    """Write a file with nothing but audio."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=48000, layout="mono")
        tone = (8000 * np.sin(np.arange(9600) / draw.randint(10, 40))).astype(np.float32)[None] / 32768
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


KINDS: dict[str, tuple[str, Callable[[Path, random.Random], object]]] = {
    "wide": (".mp4", lambda path, draw: video(path, draw, frames=17, size=(96, 64))),
    "high": (".mp4", lambda path, draw: video(path, draw, frames=13, size=(64, 96))),
    "odd": (".mkv", lambda path, draw: video(path, draw, frames=11, size=(75, 53), lossless=True)),
    "fast": (".mp4", lambda path, draw: video(path, draw, frames=31, size=(64, 64), fps=60)),
    "ntsc": (".mov", lambda path, draw: video(path, draw, frames=9, size=(80, 64), fps=Fraction(30000, 1001))),
    "one": (".webm", lambda path, draw: video(path, draw, frames=1, size=(64, 64))),
    "gif": (".gif", lambda path, draw: video(path, draw, frames=6, size=(48, 48), fps=10)),
    "png": (".png", image),
    "jpeg": (".jpg", image),
    "cut": (".mp4", cut),
    "audio": (".mp4", audio),
    "noise": (".mp4", lambda path, draw: path.write_bytes(draw.randbytes(5000))),
}
"""Extensions and writers of the kinds; the last three are no clips."""
BAD = ("cut", "audio", "noise")


def film(path: Path, draw: random.Random) -> None:
    """Write a video as people train on: 81 frames of 1280x720, a camera that moves over a texture, and its noise.

    Each frame is one slice, as programs and cameras write them; FFmpeg decodes several slices at a time.
    """
    noise = np.random.default_rng(draw.randrange(2**32))
    scene = np.zeros((900, 1600, 3))
    for size in ((25, 14), (100, 56), (400, 225)):
        coarse = Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), np.uint8))
        scene += np.asarray(coarse.resize((1600, 900), Image.Resampling.BICUBIC)) / 3
    speeds = draw.uniform(0.03, 0.08), draw.uniform(0.03, 0.08)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"crf": "20", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for time in range(81):
            top, left = (int(room * (1 + np.sin(time * speed))) for room, speed in zip((90, 160), speeds, strict=True))
            picture = scene[top : top + 720, left : left + 1280] + noise.normal(0, 3, (720, 1280, 1))
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    """Write the clips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--film", action="store_true", help="clips of 81 frames of 1280x720 only, in one folder")
    arguments = parser.parse_args()
    for number in range(arguments.count):
        kind = "film" if arguments.film else list(KINDS)[number % len(KINDS)]
        suffix, write = (".mp4", film) if arguments.film else KINDS[kind]
        folder = arguments.folder if arguments.film else arguments.folder / f"{number // 50:02d}"
        path = folder / f"{number:04d}_{kind}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, random.Random(f"{arguments.seed} {number}"))
        if number % 3 == 0 and not arguments.film:
            path.with_suffix(".txt").write_text(f"clip {number}, {kind}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
