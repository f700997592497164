"""Commands with --shards: torchrun starts one process per device, and each computes a part of every frame.

Every process opens the input and loads the model; rank 0 writes the output, prints the result and shows progress.
"""

import logging
import os
import shlex
import sys

from wan_vae.cli import signals
from wan_vae.cli.options import Device, torch_device
from wan_vae.errors import UserError

LOST = "another of the processes that share the clip has ended."
# Whether this process shares its command, and whether all processes will fail together from now on.
_shared = False
_together = True


def is_main() -> bool:
    """Whether this process is the only one or rank 0."""
    return os.environ.get("RANK", "0") == "0"


def agree(error: str | None = None) -> str | None:
    """Exchange the errors of all processes, once: a process must not wait for one that has failed.

    Args:
        error: Message of this process's error; None once its inputs are open.

    Returns:
        The error, if this process is to print it: it is rank 0, or rank 0 has none.

    Raises:
        UserError: In rank 0, if other processes failed and it did not.
        SystemExit: In other processes, if others failed and they did not.
    """
    global _together
    if _together:
        return error if is_main() or not _shared else None
    _together = True

    import torch.distributed as dist

    errors = [error] * dist.get_world_size()
    try:
        dist.all_gather_object(errors, error)
    except RuntimeError:  # another process has ended
        if error is None:
            raise
        return error
    if error is None and any(errors):
        if is_main():
            raise UserError(LOST)
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
    # Not imported here: that fails after an interrupted import of torch.
    dist = sys.modules.get("torch.distributed")
    if dist is None or not getattr(dist, "is_initialized", bool)():
        return
    if code == 0:
        dist.destroy_process_group()
        return
    if (number := signals.received()) is not None:
        signals.die(number)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def join(shards: int, device: Device) -> None:
    """Join the other processes of a command with --shards."""
    global _shared, _together
    _shared = True
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        command = f"torchrun --nproc-per-node {shards} -m wan_vae {shlex.join(sys.argv[1:])}"
        raise UserError(f"--shards {shards} takes {shards} processes; start them with: {command}")
    started = int(os.environ["WORLD_SIZE"])
    if started != shards:
        raise UserError(f"--shards is {shards}, but torchrun started {started}; give both the same number.")

    import torch
    import torch.distributed as dist

    on, place = torch_device(device), int(os.environ["LOCAL_RANK"])
    if on.type == "mps":
        raise UserError("--shards cannot share a clip among mps devices; --device cpu would do.")
    if on.type == "cuda":
        count = torch.cuda.device_count()
        here = max(place + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 0)))  # so that all of them end, rank 0 included
        if here > count:
            raise UserError(f"torchrun started {here} processes on a machine with {count} GPUs; start one for each.")
        torch.cuda.set_device(place)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on.type == "cuda" else "gloo")
    _together = False
    if not is_main():
        logging.getLogger("wan_vae").setLevel(logging.ERROR)
