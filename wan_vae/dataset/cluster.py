"""The clips of a cache encoded on a cluster, by Ray Data.

Actors hold the model, tasks are some clips each, and outputs go straight to the cache's folder, which all nodes see. A
node that dies costs the clips that it had in hand, which others do again; a run that dies is resumed by what is stored.
Ray's own checkpoints are of no use here: they need sources that are files of rows.
"""

import logging
import pickle
import platform
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wan_vae.dataset.engines import Done, Work, encode_jobs, memory_share, usable_cores
from wan_vae.dataset.plan import Job
from wan_vae.errors import UserError

_MOST_CLIPS = 16  # of a task: what a dead node costs, and what an actor reads ahead within
_TASKS = 8  # for each actor at least, so that the last ones end about together
_MOST_DEATHS = 3  # on a clip; Ray would try for ever
_DEATHS = f"the process that encoded it died {_MOST_DEATHS} times; memory may be too little, or a library failed on it."
_SECONDS_TO_CONNECT = 10.0
_LOGGER = logging.getLogger("wan_vae")


class _Begun:
    """Counts how often each clip was begun and not ended: the deaths on it. An actor on the driver's node."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, labels: list[str]) -> int:
        """Return the largest count of some clips."""
        return max(self._counts[label] for label in labels)

    def begin(self, label: str) -> int:
        """Return how often a clip was begun before."""
        self._counts[label] += 1
        return self._counts[label] - 1

    def end(self, label: str) -> None:
        """Forget a clip."""
        del self._counts[label]


class _Actor:
    """Encodes clips on a node."""

    def __init__(self, work: Work, cores: int, begun: Any) -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(cores)
            work = replace(work, memory=memory_share(work.memory, max(1, usable_cores() // cores)))
        self._model, self._work, self._begun = work.model(), work, begun
        self._digest = self._model.digest()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode batches of pickled clips; returns what became of them, pickled."""
        done = [item for packed in batch["jobs"] for item in self._encoded(pickle.loads(packed))]
        return {"done": np.array([pickle.dumps(item) for item in done], dtype=object)}

    def _encoded(self, jobs: list[Job]) -> Iterator[Done]:
        import ray

        if any(job.key.checkpoint != self._digest for job in jobs):
            # Not an error of Ray's, which would be tried again.
            error = f"the checkpoint {self._work.vae} has other weights on the node {platform.node()}."
            yield from (Done(job, [], error, True, 0.0) for job in jobs)
            return
        lost: list[Done] = []

        def alive() -> Iterator[Job]:
            for job in jobs:
                if ray.get(self._begun.begin.remote(job.source.label)) < _MOST_DEATHS:
                    yield job
                else:
                    lost.append(Done(job, [], _DEATHS, False, 0.0))

        # Where a process died, one clip after the other, so that the next death is of one clip alone.
        died = ray.get(self._begun.count.remote([job.source.label for job in jobs]))
        work = replace(self._work, threads=1) if died else self._work
        for item in encode_jobs(self._model, alive(), work, lambda: None):
            self._begun.end.remote(item.job.source.label)
            yield item
        yield from lost


def encode_on_cluster(
    jobs: list[Job], work: Work, address: str, actors: int | None, tick: Callable[[], object]
) -> Generator[Done, None, None]:
    """Encode clips on a Ray cluster.

    Args:
        jobs: The clips, whose paths are the same on all nodes.
        work: How; the cache's folder is one that all nodes see.
        address: Of the cluster, or "auto" for the one that this machine is part of.
        actors: How many encode; None for one on each GPU, or, without GPUs, as many as the cores allow.
        tick: Called after every task.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    ray = _connected(address)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    possible = gpus or int(resources.get("CPU", 0)) // work.threads
    if possible < 1:
        raise UserError(
            f"The cluster {address} has {int(resources.get('CPU', 0))} cores and no GPU; --threads is {work.threads},"
            " which is more than it has."
        )
    count = min(actors or possible, possible, len(jobs))
    size = max(1, min(_MOST_CLIPS, len(jobs) // (count * _TASKS)))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    begun = ray.remote(_Begun).options(num_cpus=0, scheduling_strategy=here).remote()
    tasks = [{"jobs": pickle.dumps(jobs[first : first + size])} for first in range(0, len(jobs), size)]
    encoded = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _Actor,
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(count, len(tasks)), max_tasks_in_flight_per_actor=2),
        fn_constructor_args=(work, work.threads, begun),
        num_cpus=work.threads,
        num_gpus=1 if gpus else 0,
    )
    for batch in encoded.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
        for packed in batch["done"]:
            yield pickle.loads(packed)
        tick()


def _connected(address: str) -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError('--ray needs Ray Data, which is not installed: pip install "wan-vae[ray]".') from error
    if address != "auto":
        _check_address(address)
    _LOGGER.info(f"Connecting to the Ray cluster {address}.")
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise _no_cluster(address, str(error).partition("\n")[0]) from error
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one for the whole
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _check_address(address: str) -> None:
    """Raise a UserError where nobody listens, which Ray itself finds out after minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise UserError(
            f"--ray is {address!r}; write auto, or the address of the cluster's head, such as 10.0.0.1:6379, on a"
            " machine that is one of its nodes."
        )
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, reason: str) -> UserError:
    return UserError(
        f"--ray is {address!r}, but there is no such cluster ({reason}). Start one with `ray start --head`, and"
        " `ray start --address=HOST:6379` on the other machines."
    )
