"""A benchmark from start to end."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from wan_vae.benchmark import record
from wan_vae.benchmark.implementations import OURS, THEIRS, obstacle
from wan_vae.benchmark.inputs import write_inputs
from wan_vae.benchmark.job import Job
from wan_vae.benchmark.machine import describe_machine
from wan_vae.benchmark.measurer import Setup
from wan_vae.benchmark.session import Session
from wan_vae.benchmark.weights import open_weights
from wan_vae.benchmark.worker import Worker
from wan_vae.provenance import code_version


def conduct(job: Job, say: Callable[[str], None]) -> record.Record:
    """Measure and return all that was found, as JSON types.

    Everything is called to warm up, for its memory and its output, then in rounds that are timed: each round calls each
    implementation in each dtype, in turn.

    Args:
        job: What to measure.
        say: Is told what is going on.

    Raises:
        UserError: The model is not there, the clip does not fit it, or an implementation cannot do what is asked.
    """
    say("weights and inputs")
    with TemporaryDirectory(prefix="wan-vae-benchmark-") as name, ExitStack() as running:
        folder = Path(name)
        vae, origin = open_weights(job)
        config, reason = vae.config, obstacle(vae.config)
        names = [OURS] if reason else [OURS, THEIRS]
        if reason:
            _tell_of_absence(reason)
        weights = folder / ("weights.safetensors" if reason else "weights")
        vae.save(weights, layout="wan" if reason else "diffusers")
        del vae  # the workers need the memory
        inputs = folder / "inputs.safetensors"
        shapes = write_inputs(job, config, inputs)
        setup = partial(Setup, config=config, weights=weights, inputs=inputs, device=job.device, threads=job.threads)
        workers = {name: running.enter_context(Worker(setup(name))) for name in names}
        if THEIRS in workers and (reason := workers[THEIRS].ask("unusable")) is not None:
            _tell_of_absence(reason)
            del workers[THEIRS]

        session = Session(job, workers, folder, say)
        judge = THEIRS if THEIRS in workers else OURS
        versions = session.versions()
        work, matmul, copy = session.work(), session.matmul_ceilings(), session.copy_ceiling()
        session.load()
        if job.tune:
            session.tune()
        peaks, seconds = session.peaks(), session.seconds()
        profiles = session.profiles() if job.profile else None
        accuracies = session.accuracies(judge) if job.errors else None
        threads = session.threads()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wan_vae": code_version(),
        "torch": torch.__version__,
        "diffusers": versions.get(THEIRS),
        "machine": {**describe_machine(job.device), "threads": threads},
        "model": {
            "name": job.preset if job.checkpoint is None else Path(job.checkpoint).name,
            "weights": origin,
            "config": config.to_dict(),
        },
        "clip": {"frames": job.frames, "width": job.width, "height": job.height, **shapes},
        "warmup": job.warmup,
        "runs": job.runs,
        "ceilings": {"matmul_flops_per_second": matmul, "copy_bytes_per_second": copy},
        "results": record.results(seconds, peaks, work, matmul, copy),
        "ratios": record.ratios(seconds),
        "errors": None if accuracies is None else record.errors(accuracies, judge),
        "profiles": None if profiles is None else record.profiles(profiles),
    }


def _tell_of_absence(reason: str) -> None:
    logging.getLogger("wan_vae").warning(f"{reason}, so this library is measured alone.")
