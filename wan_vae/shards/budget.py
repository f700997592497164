"""One budget of memory for processes that may have different ones."""

import socket
from typing import NamedTuple

import torch

from wan_vae.errors import UserError
from wan_vae.memory import Budget, bytes_of
from wan_vae.shards.peers import Peers


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


def least_budget(memory: Budget, device: torch.device, peers: Peers) -> int:
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
        size = bytes_of(memory, device)
    except UserError as error:
        return _Answer(error=str(error))
    return _Answer(size, socket.gethostname() if memory == "auto" and device.type == "cpu" else "")
