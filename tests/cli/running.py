"""Helpers that run a command line."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from wan_vae.cli import main, signals
from wan_vae.io import Color, create_clip, open_clip


class Outcome(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    def result(self) -> dict[str, Any]:
        """Return what a command run with --json printed."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run a command in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    signals._received.clear()  # or the tests would die of it in the end
    out, err = capsys.readouterr()
    return Outcome(exit_.value.code or 0, out, err)


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "wan_vae", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        **options,
    )


def write_clip(path: Path, *, frames: int, width: int, height: int, fps: Fraction) -> Path:
    """Write moving gradients, losslessly."""
    time, row, column = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    pixels = np.stack([row * 7 + time, column * 5 + 2 * time, row + column + 3 * time], axis=-1) % 256
    with create_clip(path, width=width, height=height, fps=fps, color=Color("rgb", True), lossless=True) as writer:
        writer.write(pixels.astype(np.uint8))
    return path


def read_clip(path: Path) -> np.ndarray:
    """Read all frames of a clip, (n, height, width, 3)."""
    with open_clip(path) as clip:
        return np.concatenate(list(clip.chunks(16)))
