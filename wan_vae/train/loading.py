"""Batches on their way to the training, prepared by processes beside it."""

import signal
from collections.abc import Iterator

from torch.utils.data import DataLoader

from wan_vae.train.data import TrainingBatch, TrainingBatches


def loaded(batches: TrainingBatches, numbers: range, workers: int) -> Iterator[tuple[int, TrainingBatch]]:
    """Yield the batches of these numbers, each with its number.

    Args:
        batches: What to take them from.
        numbers: Which, in order.
        workers: Processes that prepare them; 0 for this one, when it is asked.
    """
    loader = DataLoader(
        batches, batch_size=None, sampler=numbers, num_workers=workers, worker_init_fn=_leave_signals_to_the_trainer
    )
    return zip(numbers, loader, strict=True)


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Ctrl-C, a terminal that closes, and many a job scheduler signal all processes of a run. The trainer needs its
    # workers until the step under way is done; they end with it, or, should it be killed, by themselves.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
