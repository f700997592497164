import os
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.benchmark.records import make_job
from wan_vae import WanVAE
from wan_vae.benchmark.implementations import OURS
from wan_vae.benchmark.job import random_weights, write_inputs
from wan_vae.benchmark.worker import Measurer, Setup, Worker
from wan_vae.config import load_config
from wan_vae.errors import UserError


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder, config = tmp_path_factory.mktemp("worker"), load_config("tiny")
    WanVAE.from_weights(config, random_weights(config)).save(folder / "weights.safetensors")
    write_inputs(make_job(), config, folder / "inputs.safetensors")
    setup = Setup(OURS, config, folder / "weights.safetensors", folder / "inputs.safetensors", "cpu", 1)
    with Worker(setup) as started:
        yield started
    assert started.process.exitcode == -signal.SIGKILL


def test_it_answers(worker: Worker, tmp_path: Path) -> None:
    assert worker.ask("version") == version("wan_vae")
    assert worker.ask("threads") == 1
    worker.ask("load", "fp32")
    assert worker.ask("seconds", "encode", "fp32") > 0
    assert worker.ask("measure", "decode", "fp32", tmp_path / "output.safetensors").held is not None
    assert (tmp_path / "output.safetensors").exists()


def test_it_says_what_went_wrong_and_goes_on(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match="fp8") as raised:
        worker.ask("load", "fp8")
    assert "measurer.py" in str(raised.value.__cause__)
    os.kill(worker.process.pid, signal.SIGINT)
    assert worker.ask("version") == version("wan_vae")


def test_its_death_is_told(worker: Worker) -> None:
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"process of wan_vae ended with code -9 when it was to copy_ceiling.*--size"):
        worker.ask("copy_ceiling")
    assert not worker.process.is_alive()


def test_an_operation_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load_config("tiny")
    WanVAE.from_weights(config, random_weights(config)).save(tmp_path / "weights.safetensors")
    write_inputs(make_job(), config, tmp_path / "inputs.safetensors")
    measurer = Measurer(
        Setup(OURS, config, tmp_path / "weights.safetensors", tmp_path / "inputs.safetensors", "cpu", None)
    )
    measurer.load("fp16")

    def refuse(*arguments: object) -> None:
        raise NotImplementedError("\"slow_conv3d\" not implemented for 'Half'")

    monkeypatch.setattr(WanVAE, "posterior", refuse)
    with pytest.raises(UserError, match=r"wan_vae cannot encode in fp16 here .*'Half'.*--dtype"):
        measurer.seconds("encode", "fp16")
