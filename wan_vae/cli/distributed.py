"""The processes that torchrun started for one command: the first reads and writes, the others compute with it."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wan_vae.cli.options import Device, Precision, torch_device
from wan_vae.errors import UserError

if TYPE_CHECKING:
    import torch

    from wan_vae.vae import WanVAE
    from wan_vae.vae import WanVAE as LeadVAE

_MEETING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def follows() -> bool:
    """Whether this is one of several processes and not the first: it prints nothing that the first says as well."""
    return os.environ.get("RANK", "0") != "0"


class Crew:
    """All processes of a command with `--shards`.

    Args:
        shards: How many there must be.
        device: Where each is to compute.

    Raises:
        UserError: They were not started, or there are no devices for them; the first process alone says so.
    """

    def __init__(self, shards: int, device: Device) -> None:
        try:
            on = _checked(shards, device)
        except UserError:
            if follows():
                raise SystemExit(2) from None
            raise

        import torch
        import torch.distributed as dist

        from wan_vae.sharding.process_group import ProcessGroup

        if on.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if on.type == "cuda" else "gloo")
        self._peers = ProcessGroup(range(shards))
        self._led: LeadVAE | None = None

    def follow(self, checkpoint: str | Path, device: Device, dtype: Precision) -> None:
        """Compute with the first process until it is done; end this process if that failed, which it has told of."""
        from wan_vae.cli.common import load_model
        from wan_vae.sharding.led import follow

        try:
            # The first process loads alone: what it cannot load, it alone complains of.
            self._peers.hear(0)
            follow(load_model(checkpoint, device, dtype).vae, self._peers)
        except RuntimeError as error:
            if is_loss(error):
                raise SystemExit(2) from None
            raise
        self.leave()

    def lead(self, vae: "WanVAE") -> "LeadVAE":
        """Return `vae` for the first process, which the others follow."""
        from wan_vae.vae import WanVAE as LeadVAE

        self._peers.tell("load the model")
        self._led = LeadVAE(vae, self._peers)
        return self._led

    def leave(self) -> None:
        """Part with the others, after all went well."""
        import torch.distributed as dist

        if self._led is not None:
            self._led.dismiss()
        dist.destroy_process_group()


def is_loss(error: Exception) -> bool:
    """Whether an error tells that another process has ended."""
    return type(error).__name__ in ("DistBackendError", "DistNetworkError") or "gloo" in str(error)


def end(code: int | str | None) -> NoReturn:
    """Exit; after a failure in one of several processes of a group, at once.

    Threads of torch.distributed that lost the others may abort a process while Python takes itself down, and the abort
    would take the place of the exit code.
    """
    if isinstance(code, int) and code != 0 and "torch" in sys.modules:  # some commands end without it
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def _checked(shards: int, device: Device) -> "torch.device":
    if not all(name in os.environ for name in _MEETING):
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
