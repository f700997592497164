import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.benchmark.records import make_config
from wan_vae import WanVAE
from wan_vae.benchmark import worker as tasks
from wan_vae.benchmark.implementations import WAN_VAE, import_error
from wan_vae.benchmark.inputs import random_weights, write_inputs
from wan_vae.benchmark.worker import Target, Worker, call_memory, call_seconds, prepare
from wan_vae.config import load_config
from wan_vae.errors import UserError


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder, config = tmp_path_factory.mktemp("worker"), load_config("tiny")
    weights, inputs = folder / "weights.safetensors", folder / "inputs.safetensors"
    WanVAE.from_weights(config, random_weights(config)).save(weights)
    write_inputs(make_config(), config, inputs)
    return Target(WAN_VAE, config, weights, inputs, torch.device("cpu"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with closing(Worker(WAN_VAE)) as started:
        yield started
    assert started.process.exitcode == -signal.SIGKILL


def test_call_returns_results_of_the_process(worker: Worker, target: Target, tmp_path: Path) -> None:
    assert worker.call(os.getpid) == worker.process.pid != os.getpid()
    worker.call(torch.set_num_threads, 1)
    assert worker.call(torch.get_num_threads) == 1
    worker.call(prepare, target, "fp32")
    assert worker.call(call_seconds, "encode", "fp32") > 0
    assert worker.call(call_memory, "decode", "fp32", tmp_path / "output.safetensors").used is not None
    assert (tmp_path / "output.safetensors").exists()


def test_call_after_an_error_or_an_interrupt_still_works(worker: Worker, target: Target) -> None:
    with pytest.raises(RuntimeError, match="fp8") as raised:
        worker.call(prepare, target, "fp8")
    assert "worker.py" in str(raised.value.__cause__)
    os.kill(worker.process.pid, signal.SIGINT)
    assert worker.call(import_error, WAN_VAE) is None


def test_call_when_the_process_was_killed_raises_a_user_error(worker: Worker) -> None:
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"process of wan_vae ended with code -9 in sleep.*--size"):
        worker.call(time.sleep, 60)
    assert not worker.process.is_alive()


def test_call_of_an_operation_missing_in_a_dtype_names_the_option(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_loaded", {})
    prepare(target, "fp16")

    def refuse(*arguments: object) -> None:
        raise NotImplementedError("\"slow_conv3d\" not implemented for 'Half'")

    monkeypatch.setattr(WanVAE, "posterior", refuse)
    with pytest.raises(UserError, match=r"wan_vae cannot encode in fp16 here .*'Half'.*--dtype"):
        call_seconds("encode", "fp16")
