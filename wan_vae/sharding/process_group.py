"""One budget of memory for processes that may have different ones.

The processes that share a clip, and what they send each other.
"""

import socket
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget, parse_bytes

T = TypeVar("T")
Message = tuple[int, Tensor]
"""A peer, and what it is sent or sends."""


class Transfers(NamedTuple):
    """Transfers under way.

    Attributes:
        works: To be waited for.
        buffers: What is sent and filled meanwhile.
    """

    works: "list[dist.Work]"
    buffers: list[Tensor]

    def wait(self) -> None:
        """Return when all has arrived; on a GPU, when all that is computed from now on comes after it."""
        for work in self.works:
            work.wait()


class Transport(Protocol):
    """What carries tensors between those who share a clip.

    Attributes:
        index: The place of this one among them.
    """

    index: int

    def __len__(self) -> int: ...

    def start(self, sent: Iterable[Message], filled: Iterable[Message]) -> Transfers:
        """Begin to send tensors to peers, and to fill others with what peers send; all of them are contiguous.

        What goes from one peer to another arrives in the order in which it was sent. Nothing of it may be touched until
        `wait` has returned.
        """


class ProcessGroup:
    """Processes in an order that all of them know, and the place of this one.

    Args:
        ranks: Their ranks in the default group.
        group: Through which they speak to each other; default the default group.

    Attributes:
        index: This process's place among them.
        bytes_sent: How many bytes this process has sent so far.
    """

    def __init__(self, ranks: Iterable[int], group: "dist.ProcessGroup | None" = None) -> None:
        self._ranks = tuple(ranks)
        self._group = group
        self.index = self._ranks.index(dist.get_rank())
        self.bytes_sent = 0

    def __len__(self) -> int:
        return len(self._ranks)

    def start(self, sent: Iterable[Message], filled: Iterable[Message]) -> Transfers:
        operations, buffers = [], []
        for operation, messages in ((dist.isend, sent), (dist.irecv, filled)):
            for peer, tensor in messages:
                if tensor.numel() == 0:
                    continue
                # Bytes, for the backends differ in the dtypes that they know.
                raw = tensor.view(-1).view(torch.uint8)
                self.bytes_sent += raw.numel() if operation is dist.isend else 0
                operations.append(dist.P2POp(operation, raw, self._ranks[peer], self._group))
                buffers.append(raw)
        return Transfers(dist.batch_isend_irecv(operations) if operations else [], buffers)

    def check_alike(self, description: str) -> None:
        """Make sure that all peers describe what they are about to do alike: otherwise they would wait for ever.

        Raises:
            UserError: They do not.
        """
        for peer, other in enumerate(self.told(description)):
            if other != description:
                raise UserError(
                    f"Process {self._ranks[self.index]} is given {description}, but process {self._ranks[peer]} is"
                    f" given {other}; all must be given the same clip."
                )

    def told(self, message: T) -> list[T]:
        """Give all others a small Python object, and return theirs and this one, in the order of the peers."""
        messages = [message] * len(self)
        dist.all_gather_object(messages, message, self._group)
        return messages


def channels_last(x: Tensor) -> Tensor:
    """Return (B, C, T, H, W) as a contiguous (B, T, H, W, C): a view, if it is stored like that."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


class _Answer(NamedTuple):
    """What a process may take.

    Attributes:
        size: In bytes.
        machine: Whose free memory that is, if others may find the same; else nothing.
        error: Why there is no size; else nothing.
    """

    size: int = 0
    machine: str = ""
    error: str = ""


def least_budget(memory: Budget, device: torch.device, peers: ProcessGroup) -> int:
    """Return, in bytes, what each of the processes may take: the least that any of them may. All of them must ask.

    Args:
        memory: This process's budget. If it is "auto", the processes on the CPU of one machine share what is free.
        device: Where this process computes.
        peers: The processes.

    Raises:
        UserError: In all of them, if the budget of any is none.
    """
    answers = peers.told(_answer(memory, device))
    for answer in answers:
        if answer.error:
            raise UserError(answer.error)
    machines = [answer.machine for answer in answers]
    return min(answer.size // (machines.count(answer.machine) if answer.machine else 1) for answer in answers)


def _answer(memory: Budget, device: torch.device) -> _Answer:
    try:
        size = parse_bytes(memory, device)
    except UserError as error:
        return _Answer(error=str(error))
    return _Answer(size, socket.gethostname() if memory == "auto" and device.type == "cpu" else "")
