"""Processes that share clips: started once, they take jobs over pipes."""

import multiprocessing as mp
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Far more than a job takes, and little enough that nobody waits for one that never ends.
_SECONDS = 100


class Workers:
    """Processes that take part in groups of any number of them, the first ones first."""

    def __init__(self, count: int, folder: Path) -> None:
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, count, folder / "meeting", theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, count: int, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what `job(group, *arguments)` returned in each of the first `count` processes.

        Raises:
            AssertionError: It failed in one of them, or did not end. No other job can be run after it.
        """
        assert self._pipes, "an earlier job failed"
        pipes = self._pipes[:count]
        for pipe in pipes:
            pipe.send((job, arguments, count))
        results = []
        for rank, pipe in enumerate(pipes):
            failure, result = pipe.recv() if pipe.poll(_SECONDS) else ("it does not end", None)
            if failure is not None:
                self.close()
                raise AssertionError(f"in process {rank}: {failure}")
            results.append(result)
        return results

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        self._pipes = []
        for process in self._processes:
            process.join(timeout=0.5)
            process.kill()
            process.join()


def _serve(rank: int, count: int, meeting: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(meeting), count),
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=_SECONDS),
    )
    groups = [dist.new_group(range(number + 1)) for number in range(count)]
    while True:
        try:
            job, arguments, number = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            pipe.send((None, job(groups[number - 1], *arguments)))
        except BaseException:
            pipe.send((traceback.format_exc(), None))
