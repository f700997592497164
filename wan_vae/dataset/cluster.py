"""The clips of a cache encoded on a cluster, by Ray Data.

Actors hold the model, tasks are some clips each, and outputs go straight to the cache's folder, which all nodes see. A
node that dies costs the clips that it had in hand, which others do again; a run that dies is resumed by what is stored.
Ray's own checkpoints are of no use here: they need sources that are files of rows.
"""

import logging
import os
import pickle
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wan_vae.dataset.engines import Done, Work, encode_jobs, memory_share, usable_cores
from wan_vae.dataset.plan import Job
from wan_vae.errors import UserError

_MOST_CLIPS = 16  # of a task: what a dead node costs, and what an actor reads ahead within
_TASKS = 8  # for each actor at least, so that the last ones end about together
_DEATHS = "the process that encoded it died each time; its memory may be too little, or a library failed on this clip."


class _Actor:
    """Encodes clips on a node."""

    def __init__(self, work: Work, cores: int) -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(cores)
            work = replace(work, memory=memory_share(work.memory, max(1, usable_cores() // cores)))
        self._model, self._work = work.model(), work
        self._digest = self._model.digest()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode batches of pickled clips; returns what became of them, pickled."""
        jobs: list[Job] = [job for packed in batch["jobs"] for job in pickle.loads(packed)]
        if any(job.key.checkpoint != self._digest for job in jobs):
            # Not an error of Ray's, which would be tried again.
            error = f"the checkpoint {self._work.vae} has other weights on the node {os.uname().nodename}."
            done = [Done(job, [], error, 0.0) for job in jobs]
        else:
            done = list(encode_jobs(self._model, jobs, self._work, lambda: None))
        return {"done": np.array([pickle.dumps(item) for item in done], dtype=object)}


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
    left = {job.source.label: job for job in jobs}
    # What a second round does not finish, each clip by itself, kills the processes that try.
    for clips in (size, 1):
        for done in _encoded(ray, list(left.values()), work, count, gpus > 0, clips):
            left.pop(done.job.source.label, None)
            yield done
            tick()
        if not left:
            return
    for job in left.values():
        yield Done(job, [], _DEATHS, 0.0)


def _encoded(
    ray: Any, jobs: list[Job], work: Work, actors: int, on_gpus: bool, clips: int
) -> Generator[Done, None, None]:
    """Yield what becomes of clips, in tasks of so many; those on which actors died again and again are missing."""
    ray.data.DataContext.get_current().max_errored_blocks = -1
    tasks = [{"jobs": pickle.dumps(jobs[first : first + clips])} for first in range(0, len(jobs), clips)]
    encoded = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _Actor,
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(tasks)), max_tasks_in_flight_per_actor=2),
        fn_constructor_args=(work, work.threads),
        num_cpus=work.threads,
        num_gpus=1 if on_gpus else 0,
        max_restarts=-1,
        max_task_retries=2,
    )
    for batch in encoded.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
        for packed in batch["done"]:
            yield pickle.loads(packed)


def _connected(address: str) -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError('--ray needs Ray Data, which is not installed: pip install "wan-vae[ray]".') from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(
            f"--ray is {address!r}, but there is no such cluster ({first}). Start one with `ray start --head`, and"
            " `ray start --address=HOST:6379` on the other machines."
        ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray
