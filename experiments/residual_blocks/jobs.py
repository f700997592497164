"""Run jobs in several processes, and store the result of each, so that an interrupted study resumes."""

import hashlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from tqdm import tqdm

from experiments.residual_blocks.settings import Frozen
from wan_vae.io.atomic_output import written_beside

Result = TypeVar("Result", bound=Frozen)
ResultOut = TypeVar("ResultOut", bound=Frozen, covariant=True)


class Job(Protocol[ResultOut]):
    """Something whose result depends on its own fields alone."""

    @property
    def name(self) -> str:
        """What a person would call it."""

    def run(self) -> ResultOut:
        """Do it."""

    def model_dump_json(self) -> str:
        """Return its fields (pydantic's)."""


def stored_at(job: Job[Result], folder: Path) -> Path:
    """Return where a job's result is kept: a name to read, and a digest of all its fields."""
    digest = hashlib.sha256(job.model_dump_json().encode()).hexdigest()[:12]
    return folder / f"{job.name}-{digest}.json"


def perform(jobs: Sequence[Job[Result]], kind: type[Result], folder: Path, workers: int) -> list[Result]:
    """Return the result of every job, from `folder` where it is there already.

    Args:
        jobs: What to do.
        kind: Class of the results.
        folder: Where results are kept, one file each; files of other jobs are left alone.
        workers: Processes; 1 takes this one. Each computes with one thread, so that results do not depend on it.
    """
    missing = [job for job in jobs if not stored_at(job, folder).is_file()]
    progress = tqdm(total=len(missing), unit="job", disable=None, leave=False)
    if workers == 1 or len(missing) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in missing:
                _keep(job, job.run(), folder)
                progress.update()
        finally:
            torch.set_num_threads(threads)
    else:
        # Forking a process that has run torch can hang in its threads.
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        )
        try:
            running = {pool.submit(_run, job): job for job in missing}
            for future in as_completed(running):
                _keep(running[future], future.result(), folder)
                progress.update()
        except BaseException:
            # The jobs under way would be waited for, though nobody will look at what they find.
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    progress.close()
    return [kind.model_validate_json(stored_at(job, folder).read_text(encoding="utf-8")) for job in jobs]


def _run(job: Job[Result]) -> Result:
    return job.run()


def _keep(job: Job[Result], result: Result, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with written_beside(stored_at(job, folder)) as path:
        path.write_text(result.model_dump_json(), encoding="utf-8")
