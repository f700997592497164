"""The processes that share a clip: what they send each other, and the memory they have together."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget, parse_bytes

T = TypeVar("T")
Message = tuple[int, Tensor]
"""A rank, and the tensor that is sent to or received from it."""


class Transfers(NamedTuple):
    """Transfers in flight."""

    works: "list[dist.Work]"  # to wait for
    buffers: list[Tensor]  # what is sent and received, kept alive meanwhile

    def wait(self) -> None:
        """Wait until all has arrived; on a GPU, make everything computed from now on wait for it."""
        for work in self.works:
            work.wait()


class Transport(Protocol):
    """Carries tensors between the ranks that share a clip."""

    rank: int
    world_size: int

    def start(self, sent: Iterable[Message], filled: Iterable[Message]) -> Transfers:
        """Begin to send tensors and to fill others with what is received; all of them are contiguous.

        Messages from one rank to another arrive in the order in which they were sent. Nothing of them may be touched
        until `wait` has returned.
        """


class ProcessGroup:
    """Processes in an order that all of them know, and this one's place among them.

    Args:
        ranks: Their ranks in the default group.
        group: The group to communicate through; default the default group.

    Attributes:
        rank: This process's place among them.
        world_size: Number of processes.
        bytes_sent: Bytes that this process has sent so far.
    """

    def __init__(self, ranks: Iterable[int], group: "dist.ProcessGroup | None" = None) -> None:
        self._ranks = tuple(ranks)
        self._group = group
        self.rank = self._ranks.index(dist.get_rank())
        self.world_size = len(self._ranks)
        self.bytes_sent = 0

    def start(self, sent: Iterable[Message], filled: Iterable[Message]) -> Transfers:
        operations, buffers = [], []
        for operation, messages in ((dist.isend, sent), (dist.irecv, filled)):
            for rank, tensor in messages:
                if tensor.numel() == 0:
                    continue
                # Bytes, because backends differ in the dtypes they support.
                raw = tensor.view(-1).view(torch.uint8)
                self.bytes_sent += raw.numel() if operation is dist.isend else 0
                operations.append(dist.P2POp(operation, raw, self._ranks[rank], self._group))
                buffers.append(raw)
        return Transfers(dist.batch_isend_irecv(operations) if operations else [], buffers)

    def check_alike(self, description: str) -> None:
        """Make sure that all ranks are about to do the same; otherwise they would wait for each other for ever.

        Args:
            description: What this rank is about to do.

        Raises:
            UserError: Another rank's description differs.
        """
        for rank, other in enumerate(self.all_gather_object(description)):
            if other != description:
                raise UserError(
                    f"Process {self._ranks[self.rank]} is given {description}, but process {self._ranks[rank]} is"
                    f" given {other}; all must be given the same clip."
                )

    @contextmanager
    def telling_errors(self) -> Iterator[None]:
        """Tell the others, in their next `check_alike`, of an error in the body, for which they would wait for ever."""
        try:
            yield
        except Exception as error:
            self.all_gather_object(f"an error ({error})")
            raise

    def all_gather_object(self, message: T) -> list[T]:
        """Give all others a small Python object, and return everyone's, by rank."""
        messages = [message] * self.world_size
        dist.all_gather_object(messages, message, self._group)
        return messages


def channels_last(x: Tensor) -> Tensor:
    """Return (B, C, T, H, W) as a contiguous (B, T, H, W, C): a view, if it is stored like that."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


def min_budget(memory: Budget, device: torch.device, group: ProcessGroup) -> int:
    """Return the least budget of all ranks, in bytes. All ranks must call it.

    Args:
        memory: This rank's budget. With "auto", the ranks on the CPU of one machine divide what is free.
        device: Where this rank computes.
        group: The ranks.

    Raises:
        UserError: On all ranks, if the budget of any is not possible.
    """
    size, error = 0, ""
    try:
        size = parse_bytes(memory, device)
    except UserError as mistake:
        error = str(mistake)
    # Other ranks on this machine have found the same free memory.
    machine = socket.gethostname() if memory == "auto" and device.type == "cpu" else ""
    answers = group.all_gather_object((size, machine, error))
    for _, _, error in answers:
        if error:
            raise UserError(error)
    machines = [machine for _, machine, _ in answers]
    return min(size // (machines.count(machine) if machine else 1) for size, machine, _ in answers)
