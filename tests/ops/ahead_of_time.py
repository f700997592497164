"""What the package launches on an NVIDIA GPU that need not be there, and what Triton compiles it to.

A model of meta tensors runs as on a GPU, so that the launches are those of the package's own code; Triton's driver is
replaced by one that names an architecture and runs nothing.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import wan_vae.ops.triton
from tests.inference.test_bytes_moved import GIB, GPU, OnGPU, free
from wan_vae.config import load_config
from wan_vae.inference import pass_runner, passes
from wan_vae.ops import autotune

SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""What one program may have, in bytes, by compute capability: A100, RTX 4090, H100, B200, RTX 5090."""

_run = JITFunction.run


class Launch(NamedTuple):
    """A kernel and its arguments.

    Attributes:
        operation: The key of `autotune.run_fastest`, and None where nothing is tuned.
        candidate: The name of the implementation that launches, and None where nothing is tuned.
    """

    kernel: Any
    values: tuple[Any, ...]
    named: dict[str, Any]
    operation: str | None
    candidate: str | None

    @property
    def module(self) -> str:
        return str(self.kernel.fn.__module__).rpartition(".")[2]

    @property
    def arguments(self) -> dict[str, Any]:
        return {**dict(zip(self.kernel.arg_names, self.values, strict=False)), **self.named}

    @property
    def is_tuned(self) -> bool:
        """Whether the kernel only runs where it was measured."""
        return self.candidate is not None and self.module.startswith("conv3d")

    @property
    def code(self) -> tuple[Any, ...]:
        """Return what tells programs apart; convolutions with one tile are alike, whatever their channels."""
        if self.is_tuned:
            return self.module, self.candidate
        constants = (parameter.name for parameter in self.kernel.params if parameter.is_constexpr)
        types = (value.dtype for value in self.values if isinstance(value, Tensor))
        return self.module, *(self.arguments[name] for name in constants), *types

    @property
    def size(self) -> tuple[int, int]:
        """Return the number of operands and, of a convolution, that of the terms of a sum."""
        names = ("in_channels", "kernel_frames", "kernel_height", "kernel_width")
        terms = prod(self.arguments[name] for name in names) if self.is_tuned else 0
        return sum(value is not None for value in self.values), terms


class Compiled:
    """The machine code of a launch."""

    def __init__(self, kernel: Any) -> None:
        self.shared_memory: int = kernel.metadata.shared  # bytes a program needs
        self._binary: bytes = kernel.asm["cubin"]

    @cached_property
    def instructions(self) -> list[str]:
        """Of the GPU itself, such as "0a30 HGMMA.64x128x16.F32 R24, gdesc[UR8]"."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(self._binary)
            command = [knobs.nvidia.cuobjdump.path, "-sass", file.name]
            code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [" ".join(each) for each in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;", code)]

    def named(self, name: str) -> list[str]:
        """Return the instructions whose name begins so."""
        return [line for line in self.instructions if re.search(rf"\b{name}\b", line)]

    @property
    def spills(self) -> bool:
        """Whether registers are kept in memory."""
        return bool(self.named("STL") or self.named("LDL"))

    def loop_around(self, instruction: str) -> list[str]:
        """Return the shortest loop that contains an instruction."""
        places = [int(line.split()[0], 16) for line in self.instructions]
        loops = []
        for end, line in enumerate(self.instructions):
            jump = re.search(r"\bBRA\b.* 0x([0-9a-f]+)", line)
            if jump is not None and int(jump[1], 16) < places[end]:
                body = self.instructions[places.index(int(jump[1], 16)) : end + 1]
                if any(instruction in each for each in body):
                    loops.append(body)
        return min(loops, key=len)


@cache
def launches(preset: str, architecture: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Launch, ...]:
    """Return what encoding and decoding a clip in 720p launches, all candidates of the tuner included, each once."""
    config = load_config(preset)
    found: dict[Any, Launch] = {}
    tuned: list[tuple[str, str]] = []

    def record(kernel: Any, *values: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
        assert 0 < grid[0] < 2**31
        launch = Launch(kernel, values, named, *(tuned[-1] if tuned else (None, None)))
        key = (launch.operation, launch.code)
        if key not in found or found[key].size < launch.size:
            found[key] = launch

    def run_all(key: str, candidates: Mapping[str, Callable[[], Tensor]], device: torch.device) -> Tensor:
        results = []
        for name, compute in candidates.items():
            tuned.append((key, name))
            results.append(compute())
            tuned.pop()
        return results[0]

    with torch.device("meta"):
        vae = OnGPU(config).to(dtype).eval().requires_grad_(False)
    frames = 1 if config.images_only else 1 + 4 * config.temporal_compression
    video = torch.empty(1, config.image_channels, frames, 720, 1280, dtype=dtype, device="meta")
    with ExitStack() as patches:
        for patch in (
            fake_gpu(architecture),
            free(60 * GIB),
            mock.patch.object(passes, "device_of", return_value=GPU),
            mock.patch.object(pass_runner, "can_capture", return_value=False),
            mock.patch.object(autotune, "run_fastest", run_all),
            mock.patch.object(JITFunction, "run", record),
            autotune.measuring(),
            torch.inference_mode(),
        ):
            patches.enter_context(patch)
        vae.decode(vae.encode(video))
    return tuple(found.values())


@contextmanager
def fake_gpu(architecture: int) -> Iterator[None]:
    """Have meta tensors taken for those of a GPU with this compute capability, such as 90."""

    class Driver:
        def get_current_device(self) -> int:
            return architecture  # Triton keeps what it compiled by device

        def get_current_stream(self, device: int | None = None) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", architecture, 32)

    with (
        mock.patch.object(driver, "_active", Driver()),
        mock.patch.object(Tensor, "is_cuda", property(lambda self: True)),
        mock.patch.object(torch.cuda, "device", return_value=nullcontext()),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=divmod(architecture, 10)),
        mock.patch.object(wan_vae.ops.triton, "_runs_on", return_value=True),
    ):
        yield


_compiled: dict[tuple[Any, ...], Compiled] = {}


def compiled(launch: Launch, architecture: int) -> Compiled:
    """Compile a launch as Triton would where it is launched."""
    # Convolutions of one tile are programs of their own for each number of channels and taps.
    key = (architecture, launch.code, launch.size, *map(launch.arguments.get, ("in_channels", "out_channels")))
    if key not in _compiled:
        with fake_gpu(architecture):
            kernel = _run(launch.kernel, *launch.values, grid=(1,), warmup=True, **launch.named)
        _compiled[key] = Compiled(kernel)
    return _compiled[key]
