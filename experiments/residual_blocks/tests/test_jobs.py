import time
from pathlib import Path

import pytest

from experiments.residual_blocks.data import digest_of_pictures
from experiments.residual_blocks.jobs import perform, stored_at
from experiments.residual_blocks.networks import Network
from experiments.residual_blocks.settings import Ablation
from experiments.residual_blocks.tests.square import SLOW, Square, Squared
from experiments.residual_blocks.training import TrainingJob, TrainingResult


def test_results_come_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    found = perform([Square(number=number) for number in (2, 1, 5)], Squared, tmp_path, 1)
    assert [result.value for result in found] == [4, 1, 25]


def test_an_interruption_does_not_wait_for_the_other_processes(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        perform([Square(number=3), Square(number=SLOW)], Squared, tmp_path, 2)
    assert time.monotonic() - began < 60
    assert not list(tmp_path.iterdir())


def test_what_was_finished_before_an_interruption_is_not_done_again(tmp_path: Path) -> None:
    jobs = [Square(number=number) for number in (2, 3)]
    with pytest.raises(KeyboardInterrupt):
        perform(jobs, Squared, tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == [stored_at(jobs[0], tmp_path).name]
    stored_at(jobs[0], tmp_path).write_text('{"value": 7, "threads": 1}')
    assert perform(jobs[:1], Squared, tmp_path, 1) == [Squared(value=7, threads=1)]


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    jobs = [Square(number=number) for number in (2, 1)]
    assert perform(jobs, Squared, tmp_path / "two", 2) == perform(jobs, Squared, tmp_path / "one", 1)


def test_a_training_depends_on_its_job_alone_but_for_its_seconds(quick: Ablation) -> None:
    def result(seed: int, set_size: int | None = None) -> TrainingResult:
        network = Network(kind="dense", units=1, width=4, common=quick.network)
        job = TrainingJob(
            network=network,
            photos=quick.photos,
            training=quick.training,
            pictures=digest_of_pictures(quick.photos, quick.training),
            learning_rate=0.01,
            seed=seed,
            set_size=set_size,
        )
        return job.run().model_copy(update={"seconds": ()})

    first = result(0)
    others = [result(1), result(0, set_size=1)]
    assert result(0) == first
    assert first not in others
