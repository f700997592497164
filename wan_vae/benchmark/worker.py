"""A process for each implementation, so that their memory and allocators do not mix, and the functions it runs.

`Worker.call` runs any module-level function in the process and waits for its result, so only one process works at a
time. The functions here share one loaded implementation; its calls run under `torch.inference_mode`.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wan_vae.benchmark import measure
from wan_vae.benchmark.implementations import EXACT, TORCH_DTYPES, Implementation, load, load_on_meta
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.ops.autotune import measuring

P = ParamSpec("P")
R = TypeVar("R")
OUTPUT = "output"
"""Name of the tensor in files of outputs."""
_SECONDS_TO_EXIT = 10


class Worker:
    """A process that runs functions, one at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Forking a process that has run torch can deadlock in its thread pools.
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        self.process = context.Process(target=_serve, args=(remote,), daemon=True)
        # The child inherits that the signal is ignored: Ctrl-C reaches both processes, and this one ends the other.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        remote.close()  # so that the pipe breaks when the child, which has its other copy, exits

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self._connection.close()

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a module-level function in the process, and return its result.

        Raises:
            UserError: The process has ended.
            Exception: The function's error, as a RuntimeError unless it certainly survives pickling.
        """
        try:
            self._connection.send((function, args, kwargs))
            result, error, trace = self._connection.recv()
        except (EOFError, ConnectionError) as closed:
            self.process.join(_SECONDS_TO_EXIT)
            raise UserError(
                f"the process of {self._name} ended with code {self.process.exitcode} in {function.__name__};"
                " if memory ran out, take a smaller --size, fewer --frames or --no-errors."
            ) from closed
        if error is not None:
            raise error from _RemoteTraceback(trace)
        return result


class _RemoteTraceback(Exception):  # noqa: N818 (shown as a cause, never raised)
    """Traceback of an error in a worker process."""


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            function, args, kwargs = connection.recv()
        except EOFError:
            return  # the parent process has ended
        answer: tuple[Any, Exception | None, str]
        try:
            answer = function(*args, **kwargs), None, ""
        except Exception as error:
            keep = isinstance(error, (UserError, MemoryError, OSError))
            answer = None, error if keep else RuntimeError(str(error)), traceback.format_exc()
        connection.send(answer)


@dataclass(frozen=True)
class Target:
    """The implementation that a process measures, and the files that the benchmark wrote for it."""

    implementation: str  # WAN_VAE, DIFFUSERS or OPENVINO
    config: VAEConfig
    weights: Path
    inputs: Path
    device: torch.device


_loaded: dict[tuple[str, str], tuple[Implementation, Tensor]] = {}
"""What this process has loaded, by direction and dtype: the implementation and its input."""


def prepare(target: Target, dtype: str, device: torch.device | None = None) -> None:
    """Load the implementation and its inputs in one more dtype; `device` defaults to the target's."""
    where, precision = target.device if device is None else device, TORCH_DTYPES[dtype]
    model = load(target.implementation, target.config, target.weights, device=where, dtype=precision)
    inputs = {name: tensor.to(where, precision) for name, tensor in load_file(target.inputs).items()}
    # Rounded before they are denormalized for diffusers, so that both implementations get the same numbers.
    latents = model.to_decoder_input(inputs["latents"])
    _loaded["encode", dtype], _loaded["decode", dtype] = (model, inputs["video"]), (model, latents)


def autotune(direction: str, dtype: str) -> None:
    """Call once, and autotune this library's kernels for that call."""
    with measuring(), _inference(direction, dtype) as (call, _):
        call()


def call_seconds(direction: str, dtype: str) -> float:
    """Return the duration of one call."""
    with _inference(direction, dtype) as (call, device):
        return measure.timed(call, device)[1]


def call_memory(direction: str, dtype: str, output: Path | None) -> measure.PeakMemory:
    """Return the peak memory of one call; write its output to a safetensors file if one is given."""
    with _inference(direction, dtype) as (call, device):
        result, peak = measure.measure_memory(call, device)
    if output is not None:
        _write(result, output)
    return peak


def call_profile(direction: str, dtype: str) -> dict[str, list[dict[str, Any]]]:
    """Return the time of a call by layer and by operation, longest first, as JSON types."""
    with _inference(direction, dtype) as (call, device):
        layers = measure.time_by_layer(_loaded[direction, dtype][0].network, call, device)
        operations = measure.time_by_operation(call, device)
    return {"layers": list(map(asdict, layers)), "operations": list(map(asdict, operations))}


def write_exact_output(target: Target, direction: str, output: Path) -> None:
    """Write the output in float64 to a safetensors file; other dtypes are unloaded first."""
    if (direction, EXACT) not in _loaded:
        _loaded.clear()
        prepare(target, EXACT, torch.device("cpu") if target.device.type == "mps" else None)  # mps has no float64
    with _inference(direction, EXACT) as (call, _):
        result = call()
    _write(result, output)


def call_work(target: Target, direction: str, dtype: str) -> measure.Work:
    """Count the arithmetic of a call on the meta device."""
    precision = TORCH_DTYPES[dtype]
    model = load_on_meta(target.implementation, target.config, device=target.device, dtype=precision)
    call, name = (model.encode, "video") if direction == "encode" else (model.decode, "latents")
    with torch.inference_mode():
        return measure.count_work(partial(call, load_file(target.inputs)[name].to("meta", precision)))


@contextmanager
def _inference(direction: str, dtype: str) -> Iterator[tuple[Callable[[], Tensor], torch.device]]:
    model, given = _loaded[direction, dtype]
    try:
        # Float32 without TF32, as this library computes it whatever the switch says.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield partial(getattr(model, direction), given), given.device
    except NotImplementedError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"{model.name} cannot {direction} in {dtype} here ({reason}); leave it out of --dtype."
        ) from error


def _write(output: Tensor, path: Path) -> None:
    save_file({OUTPUT: output.cpu().contiguous()}, path)
