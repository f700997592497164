"""Who encodes the clips of a cache: this process, or several on this machine. `cluster` is the third way.

Each way gives the same for a clip, `Done`, since all end in `encode_jobs`.
"""

import errno
import multiprocessing
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from wan_vae.dataset.ahead import ReadingAhead
from wan_vae.dataset.encode import Item, PartEncoder, read_parts
from wan_vae.dataset.manifest import Record
from wan_vae.dataset.outputs import Begin
from wan_vae.dataset.plan import CacheOptions, Job
from wan_vae.dataset.storage import StorageError, remove_output
from wan_vae.errors import FULL_DISK, UserError, memory_shortage, printable
from wan_vae.inference.budget import Budget, parse_bytes, reports_free_memory
from wan_vae.inference.planner import BudgetError
from wan_vae.io.frames import Frames
from wan_vae.vae import WanVAE

if TYPE_CHECKING:
    from wan_vae.tiny import TinyVAE

Loader: TypeAlias = "Callable[[str | Path], WanVAE | TinyVAE]"

_HELD = 4  # chunks that a thread reads ahead
_LEAST_ROOM = 2**20  # bytes on the disk
# Of disks, networks and limits of the process.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH} | {
    errno.ENETUNREACH, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.EROFS
}  # fmt: skip
_SECONDS_TO_STOP = 10.0  # for the pass that a process is in


@dataclass(frozen=True)
class Work:
    """What a process needs to encode clips; where it goes to another process, all of it can be pickled.

    Attributes:
        vae: A model, or a checkpoint's name or path.
        load: Loads `vae` if it is a name or path.
        out: Folder of the cache.
        options: Of the cache.
        memory: Budget of the network in each process.
        threads: Clips that a process decodes at a time.
    """

    vae: "WanVAE | str | Path"
    load: Loader
    out: Path
    options: CacheOptions
    memory: Budget
    threads: int

    def model(self) -> WanVAE:
        """Return the model, loaded if it is not."""
        model = self.load(self.vae) if isinstance(self.vae, str | Path) else self.vae
        if not isinstance(model, WanVAE):
            named = f"{self.vae} holds" if isinstance(self.vae, str | Path) else "vae is"
            raise UserError(f"{named} a {type(model).__name__}; caches need a WanVAE, or a checkpoint of one.")
        return model


@dataclass(frozen=True)
class Done:
    """What became of a clip.

    Attributes:
        job: The clip.
        records: Its outputs, none if there is an error.
        error: Why it could not be encoded.
        passing: Whether that is no fault of the clip, but of memory or rights.
        waited: Seconds for which the network waited for its frames.
    """

    job: Job
    records: list[Record]
    error: str | None
    passing: bool
    waited: float


class CancelledError(BaseException):
    """The run is to end; no fault of the clip that is being encoded."""


def encode_jobs(
    model: WanVAE, jobs: Iterable[Job], work: Work, tick: Callable[[], object]
) -> Generator[Done, None, None]:
    """Encode clips in this process, while threads decode the next ones.

    Args:
        model: That of `work`.
        jobs: The clips; they are asked for as many as `work.threads` ahead.
        work: How.
        tick: Called after every pass; it raises `CancelledError` to end the run.
    """
    encoder = PartEncoder(model, work.out, work.options, work.memory)
    waited = 0.0
    with ReadingAhead(
        jobs, lambda job: read_parts(job, work.options, model), threads=work.threads, held=_HELD
    ) as ahead:
        for job, items in ahead:
            records: list[Record] = []
            error, passing = None, False
            try:
                for record in _encode_parts(job, items, encoder, tick):
                    records.append(record)
            except StorageError:  # which is not the clip's fault, and would meet the next ones, too
                raise
            except Exception as failure:  # of one clip, whatever it is: the others are not to be lost for it
                if _causes(failure) & FULL_DISK or shutil.disk_usage(encoder.place).free < _LEAST_ROOM:
                    raise UserError(f"The disk of {encoder.place} is full; make room and start again.") from failure
                for record in records:
                    remove_output(encoder.place, record.output)
                records, error, passing = [], failure_text(failure), is_passing(failure)
            yield Done(job, records, error, passing, ahead.waited - waited)
            waited = ahead.waited


def failure_text(error: Exception) -> str:
    """Return what failures.jsonl says of an error."""
    return printable(str(error)) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"


def is_passing(error: BaseException | None) -> bool:
    """Whether an error has a cause outside of the clip, so that the same clip may do another time."""
    if error is None:
        return False
    lacks_memory = isinstance(error, Exception) and memory_shortage(error) is not None
    if lacks_memory or isinstance(error, BudgetError | PermissionError) or _causes(error) & _PASSING:
        return True
    return is_passing(error.__cause__)


def _causes(error: BaseException | None) -> set[int]:
    """Return the system's numbers of an error and its causes; FFmpeg's are left out, which say so of damaged clips."""
    if error is None:
        return set()
    found = _causes(error.__cause__)
    if isinstance(error, OSError) and error.errno is not None and not type(error).__module__.startswith("av."):
        found.add(error.errno)
    return found


def _encode_parts(
    job: Job, items: Iterator[Item], encoder: PartEncoder, tick: Callable[[], object]
) -> Iterator[Record]:
    """Encode all parts of a clip; yields what the manifest says of each."""
    waiting: list[Begin] = []

    def frames() -> Iterator[Frames]:
        for item in items:
            if isinstance(item, Begin):
                waiting.append(item)
                return
            yield item

    for _ in frames():
        raise AssertionError("frames came before the part that they belong to")
    while waiting:
        yield encoder.encode(job, waiting.pop(), frames(), tick)


def encode_in_processes(
    jobs: Iterable[Job], work: Work, processes: int, tick: Callable[[], object]
) -> Generator[Done, None, None]:
    """Encode clips in several processes, each of which takes the next clip when it has none.

    Each uses a GPU of its own, or its share of the cores.

    Raises:
        UserError: A process could not load the model, or died; the outputs of all clips that were yielded stay.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    # As many wait as are decoded ahead, so that no process hoards clips that another could do.
    todo: Any = context.Queue(maxsize=processes * work.threads)
    done: Any = context.Queue()
    stop = context.Event()
    children = [
        context.Process(
            target=_encode_in_child,
            args=(work, number, processes, todo, done, stop),
            daemon=True,
            name=f"cache {number}",
        )
        for number in range(processes)
    ]
    for child in children:
        child.start()
    threading.Thread(target=_feed, args=(jobs, todo, processes, stop), daemon=True).start()
    try:
        working = processes
        while working:
            try:
                item = done.get(timeout=0.2)
            except queue.Empty:
                dead = [child for child in children if child.exitcode not in (None, 0)]
                if dead:
                    raise UserError(
                        f"A process died ({_death(dead[0].exitcode)}). What is cached stays: start"
                        " again, with fewer --devices or less --memory if memory was short."
                    ) from None
                tick()
                continue
            if isinstance(item, Done):
                yield item
            elif item is None:
                working -= 1
            else:
                raise UserError(item)
    finally:
        stop.set()
        for child in children:
            child.join(_SECONDS_TO_STOP)
            child.terminate()
            child.join()


def _death(exitcode: int | None) -> str:
    code = exitcode or 0
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _feed(jobs: Iterable[Job], todo: Any, processes: int, stop: Any) -> None:
    for job in [*jobs, *[None] * processes]:
        while not stop.is_set():
            try:
                todo.put(job, timeout=0.2)
            except queue.Full:
                continue
            break


def _encode_in_child(work: Work, number: int, processes: int, todo: Any, done: Any, stop: Any) -> None:
    # Ctrl-C goes to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def unwanted() -> bool:
        return stop.is_set() or not parent.is_alive()

    def check() -> None:
        if unwanted():
            raise CancelledError

    def jobs() -> Iterator[Job]:
        while not unwanted():
            try:
                job = todo.get(timeout=0.2)
            except queue.Empty:
                continue
            if job is None:
                return
            yield job

    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(number % torch.cuda.device_count())
        else:
            torch.set_num_threads(max(1, usable_cores() // processes))
        for item in encode_jobs(work.model(), jobs(), work, check):
            done.put(item)
        done.put(None)
    except CancelledError:
        return
    except Exception as error:
        done.put(failure_text(error))


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_share(memory: Budget, processes: int) -> Budget:
    """Return what each of several processes of this machine may use: of "auto" its share, where they share memory."""
    cpu = torch.device("cpu")
    if memory != "auto":
        parse_bytes(memory, cpu)  # so that what is no budget is said once
        return memory
    if processes == 1 or torch.cuda.is_available() or not reports_free_memory(cpu):
        return memory
    return max(1, parse_bytes(memory, cpu) // processes)
