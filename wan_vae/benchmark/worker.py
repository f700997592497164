"""A process of its own for each implementation, so that their memory and their allocators do not mix.

The other side of the pipe is a `Measurer`. Nobody works while another does: every request waits for its answer.

What one process does for a benchmark: load an implementation, and call it as it is told to.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wan_vae.benchmark.implementations import EXACT, TORCH_DTYPES, Implementation, load, unusable, without_weights
from wan_vae.benchmark.job import DIRECTIONS
from wan_vae.benchmark.measure import (
    Peak,
    Spent,
    Work,
    copy_ceiling,
    matmul_ceiling,
    peak_of,
    time_by_layer,
    time_by_operation,
    timed,
    work_of,
)
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.ops.autotune import measuring

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


_SECONDS_TO_END = 10


class Worker:
    """A process that measures one implementation until the `with` block ends, however it ends."""

    def __init__(self, setup: Setup) -> None:
        self._name = setup.implementation
        # A fork of a process that has run torch can hang in its threads.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        # With only the worker holding its end, its death is the end of the pipe.
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.join()
        self._connection.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what a method of the worker's `Measurer` returns.

        Raises:
            UserError: The process is gone.
            Exception: What the method raised.
        """
        try:
            self._connection.send((method, arguments))
            result, error, trace = self._connection.recv()
        except (EOFError, ConnectionError) as gone:
            self.process.join(_SECONDS_TO_END)
            raise UserError(
                f"the process of {self._name} ended with code {self.process.exitcode} when it was to {method};"
                " if memory ran out, take a smaller --size, fewer --frames or --no-errors."
            ) from gone
        if error is not None:
            raise error from _RemoteTraceback(trace)
        return result


class _RemoteTraceback(Exception):  # noqa: N818 (it is shown as a cause, not raised)
    """Where in the worker an exception came from."""


def _serve(connection: Connection, setup: Setup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    measurer: Measurer | None = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return  # whom this was for is gone
        answer: tuple[Any, Exception | None, str]
        try:
            measurer = measurer or Measurer(setup)
            answer = getattr(measurer, method)(*arguments), None, ""
        except Exception as error:
            answer = None, _sendable(error), traceback.format_exc()
        connection.send(answer)


def _sendable(error: Exception) -> Exception:
    # Of what torch raises, not everything survives a pipe as what it was.
    return error if isinstance(error, (UserError, MemoryError, OSError)) else RuntimeError(str(error))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    # A process is born with what its parent ignores: Ctrl-C reaches all of them, and only one is to end the others.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
