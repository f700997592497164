"""What one process does for a benchmark: load an implementation, and call it as it is told to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wan_vae.benchmark.ceilings import copy_ceiling, matmul_ceiling
from wan_vae.benchmark.clock import timed
from wan_vae.benchmark.implementations import EXACT, TORCH_DTYPES, Implementation, load, unusable, without_weights
from wan_vae.benchmark.job import DIRECTIONS
from wan_vae.benchmark.layers import Spent, time_by_layer
from wan_vae.benchmark.memory import Peak, peak_of
from wan_vae.benchmark.operations import time_by_operation
from wan_vae.benchmark.work import Work, work_of
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.ops.selection import measuring

Result = TypeVar("Result")
OUTPUT = "output"
"""The name of the tensor in the files that `measure` and `reference` write."""


@dataclass(frozen=True)
class Setup:
    """What a process is for.

    Attributes:
        implementation: `OURS` or `THEIRS`.
        config: The architecture.
        weights: Where the weights are.
        inputs: A file that `write_inputs` wrote.
        device: A device's type.
        threads: On a CPU; None for torch's choice.
    """

    implementation: str
    config: VAEConfig
    weights: Path
    inputs: Path
    device: str
    threads: int | None


class Measurer:
    """Measures one implementation. All calls run under `torch.inference_mode`, otherwise as the libraries are."""

    def __init__(self, setup: Setup) -> None:
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        self._setup = setup
        self._device = torch.device(setup.device)
        inputs = load_file(setup.inputs)
        self._inputs = {"encode": inputs["video"], "decode": inputs["latents"]}
        self._loaded: dict[str, Implementation] = {}
        self._prepared: dict[tuple[str, str], Tensor] = {}

    def unusable(self) -> str | None:
        """Say why the implementation cannot be used; None where it can."""
        return unusable(self._setup.implementation)

    def threads(self) -> int:
        """Return how many threads an operation on a CPU takes."""
        return torch.get_num_threads()

    def version(self) -> str:
        """Return the version of the package that is measured."""
        return version(self._setup.implementation)

    def load(self, dtype: str, device: str | None = None) -> None:
        """Load the implementation in one more dtype, with its inputs; `device` if not on that of the setup."""
        setup, on = self._setup, self._setup.device if device is None else device
        precision = TORCH_DTYPES[dtype]
        loaded = load(setup.implementation, setup.config, setup.weights, device=on, dtype=precision)
        # Both networks get the same numbers: what is final to us is rounded before it becomes what is raw to them.
        video, latents = (self._inputs[direction].to(on, precision) for direction in DIRECTIONS)
        self._loaded[dtype] = loaded
        self._prepared |= {("encode", dtype): video, ("decode", dtype): loaded.accepted(latents)}

    def tune(self, direction: str, dtype: str) -> None:
        """Call once, and remember from then on which of our kernels are the fastest in it."""
        with measuring():
            self._observed(lambda call: call(), direction, dtype)

    def seconds(self, direction: str, dtype: str) -> float:
        """Return how long one call takes."""
        return self._observed(lambda call: timed(call, self._device)[1], direction, dtype)

    def measure(self, direction: str, dtype: str, output: Path | None) -> Peak:
        """Call once, for the memory that it takes; its output is written to a safetensors file if one is named."""
        result, peak = self._observed(lambda call: peak_of(call, self._device), direction, dtype)
        if output is not None:
            _write(result, output)
        return peak

    def time_by_layer(self, direction: str, dtype: str) -> list[Spent]:
        """Return where the time of a call goes, by layer."""
        network = self._loaded[dtype].network
        return self._observed(lambda call: time_by_layer(network, call, self._device), direction, dtype)

    def time_by_operation(self, direction: str, dtype: str) -> list[Spent]:
        """Return where the time of a call goes, by operation."""
        return self._observed(lambda call: time_by_operation(call, self._device), direction, dtype)

    def reference(self, direction: str, output: Path) -> None:
        """Write the output in float64, for which what is loaded makes place."""
        if EXACT not in self._loaded:
            self._loaded.clear()
            self._prepared.clear()
            self.load(EXACT, device="cpu" if self._device.type == "mps" else None)  # mps has no float64
        result: Tensor = self._observed(lambda call: call(), direction, EXACT)
        _write(result, output)

    def work(self, direction: str, dtype: str) -> Work:
        """Count what a call computes."""
        setup, precision = self._setup, TORCH_DTYPES[dtype]
        blank = without_weights(setup.implementation, setup.config, device=self._device, dtype=precision)
        given = self._inputs[direction].to("meta", precision)
        with torch.inference_mode():
            return work_of(partial(getattr(blank, direction), given))

    def matmul_ceiling(self, dtype: str) -> float:
        """Return the FLOP/s of matrix products at best."""
        return matmul_ceiling(TORCH_DTYPES[dtype], self._device)

    def copy_ceiling(self) -> float:
        """Return the bytes read and written a second at best."""
        return copy_ceiling(self._device)

    def _observed(self, observe: Callable[[Callable[[], Tensor]], Result], direction: str, dtype: str) -> Result:
        call = partial(getattr(self._loaded[dtype], direction), self._prepared[direction, dtype])
        try:
            with torch.inference_mode():
                return observe(call)
        except NotImplementedError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UserError(
                f"{self._setup.implementation} cannot {direction} in {dtype} here ({reason}); leave it out of --dtype."
            ) from error


def _write(output: Tensor, path: Path) -> None:
    save_file({OUTPUT: output.cpu().contiguous()}, path)
