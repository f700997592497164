"""Commands with --shards: torchrun starts one process per device, and each computes a part of every frame.

Every process opens the input and loads the model; rank 0 writes the output, prints the result and shows progress.
"""

import logging
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wan_vae.cli import signals
from wan_vae.cli.options import Device, Precision, torch_device
from wan_vae.errors import UserError

if TYPE_CHECKING:
    import torch

    from wan_vae.sharding import ShardedVAE
    from wan_vae.vae import WanVAE

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Whether this process shares its command with others, and whether all know that all have opened their inputs: from then
# on they fail together.
_shared = False
_ready = False


def is_main() -> bool:
    """Whether this process is the only one or rank 0."""
    return os.environ.get("RANK", "0") == "0"


def model_loader(
    device: Device, dtype: Precision, shards: int
) -> "Callable[[str | Path], WanVAE] | Callable[[str | Path], ShardedVAE]":
    """Return a function that loads a checkpoint as the options ask; for several shards, join the other processes first.

    Raises:
        UserError: The processes were not started, or there are no devices for them.
        SystemExit: The same, in other processes than rank 0.
    """
    from wan_vae.cli.common import load_model

    if shards == 1:
        return partial(load_model, device=device, dtype=dtype)
    _start(shards, device)
    return lambda checkpoint: load_model(checkpoint, device=device, dtype=dtype).shard()


def wait_until_all_are_ready(error: str | None = None) -> str | None:
    """Exchange errors, once: a process that waits for one that has failed waits in vain.

    Args:
        error: What went wrong in this process; None for nothing.

    Returns:
        The error that this process prints: its own, if rank 0 does not print one.

    Raises:
        UserError: In rank 0, if something went wrong in other processes only.
        SystemExit: In other processes, if something went wrong, but not in this one.
    """
    global _ready
    if not _shared:
        return error
    if _ready:
        return error if is_main() else None
    _ready = True

    import torch.distributed as dist

    errors: list[str | None] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(errors, error)
    except RuntimeError:
        if error is None:
            raise
        return error
    if error is None and any(errors):
        if is_main():
            raise UserError("another of the processes that share the clip has ended.")
        raise SystemExit(2)
    return error if is_main() or errors[0] is None else None


def is_connection_loss(error: Exception) -> bool:
    """Whether an error tells that another process has ended."""
    return type(error).__name__ in ("DistBackendError", "DistNetworkError") or "gloo" in str(error)


def leave(code: int | str | None) -> None:
    """Leave the process group, if there is one; after a failure, by ending this process at once.

    Threads of torch.distributed that lost their connections may abort a process while Python exits, and the abort would
    replace the exit code.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return
    if code == 0:
        dist.destroy_process_group()
        return
    number = signals.received()
    if number is not None:
        signals.die(number)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _start(shards: int, device: Device) -> None:
    global _shared
    try:
        on = _check(shards, device)
    except UserError:
        if is_main():
            raise
        raise SystemExit(2) from None

    import torch
    import torch.distributed as dist

    if on.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on.type == "cuda" else "gloo")
    _shared = True
    if not is_main():
        logging.getLogger("wan_vae").setLevel(logging.ERROR)


def _check(shards: int, device: Device) -> "torch.device":
    if not all(name in os.environ for name in _TORCHRUN):
        command = f"torchrun --nproc-per-node {shards} -m wan_vae {shlex.join(sys.argv[1:])}"
        raise UserError(f"--shards {shards} takes {shards} processes; start them with: {command}")
    started = int(os.environ["WORLD_SIZE"])
    if started != shards:
        raise UserError(f"--shards is {shards}, but torchrun started {started}; give both the same number.")

    import torch

    on = torch_device(device)
    if on.type == "mps":
        raise UserError("--shards cannot share a clip among mps devices; --device cpu would do.")
    if on.type == "cuda" and int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started more processes than this machine's {torch.cuda.device_count()} GPUs; start one for each."
        )
    return on
