"""How far an output is from the same in float64, latent by latent or frame by frame."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from safetensors import safe_open
from torch import Tensor

from wan_vae.benchmark.measurer import OUTPUT


@dataclass(frozen=True)
class Accuracy:
    """Root mean square errors of an output.

    Attributes:
        by_frame: Of each frame (or latent), in the output's own unit: raw latents, or pixels in [-1, 1].
        scale: Root mean square of the whole output.
    """

    by_frame: tuple[float, ...]
    scale: float

    def to_dict(self) -> dict[str, Any]:
        """Return the errors, and of them the mean, first, last and worst, as JSON types."""
        errors = self.by_frame
        return {"mean": mean(errors), "first": errors[0], "last": errors[-1], "worst": max(errors)} | asdict(self)


def compare(output: Path, truth: Path) -> Accuracy:
    """Compare two files that hold (B, C, T, H, W), frame by frame, so that no more than a frame is in memory."""
    with safe_open(output, framework="pt") as found, safe_open(truth, framework="pt") as exact:
        ours, theirs = found.get_slice(OUTPUT), exact.get_slice(OUTPUT)
        assert ours.get_shape() == theirs.get_shape()
        errors, squares = [], []
        for frame in range(ours.get_shape()[2]):
            expected: Tensor = theirs[:, :, frame].double()
            errors.append((ours[:, :, frame].double() - expected).square().mean().sqrt().item())
            squares.append(expected.square().mean().item())
    return Accuracy(tuple(errors), mean(squares) ** 0.5)
