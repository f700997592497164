"""`wan-vae train`: runs that are killed, interrupted or refused."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from tests.cli.running import run, start
from tests.cli.test_errors import assert_one_sentence, listing
from tests.helpers import random_vae, small_config
from tests.training.runs import (
    HELD_OUT,
    Material,
    assert_same,
    fresh_accelerate,
    read_state,
    recipe_values,
    stage_values,
    write_backbone,
)
from wan_vae import WanVAE
from wan_vae.cli import main
from wan_vae.training import WEIGHTS_NAME, Recipe, trainer
from wan_vae.training.checkpoint import FILE_NAME
from wan_vae.training.optim import learning_rate

pytestmark = pytest.mark.usefixtures("own_accelerate")

STEPS = 30
# Timeout in seconds, for what takes a few on an idle machine.
PATIENCE = 600


@pytest.fixture(scope="module")
def recipe(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stages = (stage_values(steps=10, batch=1), stage_values(steps=STEPS - 10, batch=1))
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    values = recipe_values(material, *stages, checkpoint_every=1)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def straight(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    with fresh_accelerate(), pytest.raises(SystemExit) as exit_:
        main(["train", str(recipe), "--out", str(folder)])
    assert exit_.value.code == 0
    return folder


@pytest.fixture(scope="module")
def helped(recipe: Path) -> Path:
    """Return the same recipe with a worker process, which gives the same weights."""
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    values["data"]["workers"] = 1
    path = recipe.with_name("helped.yaml")
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@contextmanager
def begun(recipe: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Start a run in a new process group, wait until it has a state, and yield it and its workers."""
    with start("train", recipe, "--out", folder, start_new_session=True) as process:
        try:
            until = time.monotonic() + PATIENCE
            while not (folder / FILE_NAME).exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
            workers = psutil.Process(process.pid).children(recursive=True)
            assert workers
            yield process, workers
        finally:
            process.kill()


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_same_run(folder: Path, straight: Path) -> None:
    for part in (load_file, metadata_of):
        assert_same(part(folder / WEIGHTS_NAME), part(straight / WEIGHTS_NAME))
    assert_same(read_state(folder), read_state(straight))


@pytest.mark.slow
def test_train_killed_resumes_identically(
    recipe: Path, helped: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with begun(helped, tmp_path) as (process, workers):
        process.kill()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL
        assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]
    assert not (tmp_path / WEIGHTS_NAME).exists()
    assert 0 < read_state(tmp_path)["step"] < STEPS
    assert run(capsys, "train", recipe, "--out", tmp_path).code == 0
    assert_same_run(tmp_path, straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_train_signaled_with_its_workers_resumes_identically(
    number: signal.Signals,
    recipe: Path,
    helped: Path,
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with begun(helped, tmp_path) as (process, workers):
        # As Ctrl-C and many job schedulers do.
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (-number, ""), err
    step = read_state(tmp_path)["step"]
    assert 0 < step < STEPS
    assert err.splitlines()[-1] == f"wan-vae: stopped after step {step}; the same command goes on from there."
    assert not any(worker.is_running() for worker in workers)
    assert {path.name for path in tmp_path.iterdir()} == {FILE_NAME, "frames", "log"}
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
    assert run(capsys, "train", recipe, "--out", tmp_path).code == 0
    assert_same_run(tmp_path, straight)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("times", [1, 2])
def test_train_signals_during_a_step_set_the_exit_code(
    times: int,
    number: signal.Signals,
    code: int,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(number)

    def interrupted(of: Recipe, step: int) -> float:
        for _ in range(times if step == 2 else 0):
            signal.raise_signal(number)
        return learning_rate(of, step)

    monkeypatch.setattr(trainer, "learning_rate", interrupted)
    outcome = run(capsys, "train", recipe, "--out", tmp_path)
    # The first waits for the step to end, the second does not.
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.count("\n") == 1
    assert read_state(tmp_path)["step"] == (3 if times == 1 else 2)
    assert number != signal.SIGINT or signal.getsignal(number) == before


def test_train_prints_the_run_and_its_metrics(
    recipe: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, "train", recipe, "--out", tmp_path, "--max-steps", 2, "--json")
    result = outcome.result()
    assert result.keys() == {"run", "weights", "steps", "psnr", "ssim"}
    assert (result["run"], result["weights"], result["steps"]) == (str(tmp_path), str(tmp_path / WEIGHTS_NAME), 2)
    WanVAE.from_pretrained(tmp_path / WEIGHTS_NAME)
    again = run(capsys, "train", recipe, "--out", straight)
    assert again.code == 0
    assert "vae.safetensors" in again.out
    assert str(STEPS) in again.out


def test_train_options_override_the_recipe(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random_vae(small_config(), torch.float32).save(tmp_path / "vae.safetensors")
    values = recipe_values(material, stage_values(batch=1, crop=32, steps=1, loss={"lpips": 0.1}))
    values["data"] |= {"videos": "nowhere", "photos": "nowhere"}
    del values["model"]
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    options = ("--checkpoint", "vae.safetensors", "--videos", material.videos, "--photos", material.photos)
    options += ("--held-out", "one.png", "--held-out", HELD_OUT)
    backbone = write_backbone(tmp_path / "alex.safetensors")
    outcome = run(capsys, "train", "named.yaml", *options, "--lpips-backbone", backbone, "--json")
    assert json.loads(outcome.out)["run"] == str(Path("runs") / "named")
    assert json.loads(outcome.out)["lpips"] > 0
    state = read_state(tmp_path / "runs" / "named")
    assert state["recipe"]["model"]["checkpoint"] == "vae.safetensors"
    assert state["recipe"]["data"]["videos"] == str(material.videos)
    assert state["recipe"]["data"]["held_out"] == ["one.png", HELD_OUT]


def test_train_recipe_name_is_that_of_a_recipe_beside_a_folder_of_the_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    outcome = run(capsys, "train", "nano", "--out", "nano", "--videos", "nowhere")
    assert_one_sentence(outcome, "nowhere is neither a file nor a folder")


def test_train_invalid_arguments_print_one_sentence(
    recipe: Path, material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for name, changes in (("unknown", {"sede": 1}), ("large", {"stages": [stage_values(crop=17)]})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    before = listing(tmp_path)
    out = ("--out", tmp_path / "run")
    for arguments, words in (
        ((tmp_path / "nowhere.yaml", *out), ("no recipe", "nowhere.yaml", "finetune_decoder")),
        ((tmp_path / "unknown.yaml", *out), ("unknown.yaml", "sede is unknown, did you mean seed")),
        ((recipe, *out, "--max-steps", "0"), ("--max-steps", "greater than or equal to 1")),
        ((recipe, *out, "--speed", "1"), ("--speed",)),
        ((), ("recipe",)),
    ):
        outcome = run(capsys, "train", *arguments)
        assert_one_sentence(outcome._replace(err=outcome.err.replace("RECIPE", "recipe")), *words)
        assert listing(tmp_path) == before
    for arguments, words in (
        ((tmp_path / "large.yaml",), ("crop 17", "multiple of 2")),
        ((recipe, "--videos", tmp_path / "nowhere"), ("nowhere", "neither a file nor a folder")),
        ((recipe, "--videos", tmp_path / "text.mp4"), (HELD_OUT, "held_out")),
        ((recipe, "--checkpoint", tmp_path / "text.mp4"), ("text.mp4",)),
        ((recipe, "--lpips-backbone", tmp_path / "nowhere"), ("nowhere does not exist",)),
    ):
        assert_one_sentence(run(capsys, "train", *arguments, *out), *words)
        assert not (tmp_path / "run" / FILE_NAME).exists()


def test_train_folder_of_another_recipe_is_refused(
    recipe: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(recipe.read_text(encoding="utf-8")) | {"ema_decay": 0.5}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    before = (straight / FILE_NAME).stat().st_mtime_ns
    outcome = run(capsys, "train", tmp_path / "other.yaml", "--out", straight)
    assert_one_sentence(outcome, "ema_decay = 0.999, not 0.5", "--out")
    assert (straight / FILE_NAME).stat().st_mtime_ns == before


def test_train_nonfinite_loss_prints_one_sentence(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = recipe_values(material, stage_values(batch=1, learning_rate=1e30))
    (tmp_path / "fast.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    outcome = run(capsys, "train", tmp_path / "fast.yaml", "--out", tmp_path / "run")
    assert_one_sentence(outcome, "not a number", "bad_batch_step_", "frame ")


def test_train_out_of_memory_suggests_smaller_stages(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(of: Recipe, step: int) -> float:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual.")

    monkeypatch.setattr(trainer, "learning_rate", too_large)
    outcome = run(capsys, "train", recipe, "--out", tmp_path)
    assert_one_sentence(outcome, "2.00 GiB)", "crop, batch or lengths", "model.gradient_checkpointing")
    assert "--size" not in outcome.err


def test_train_without_the_extra_names_the_packages(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    missing = ("accelerate", "tensorboard")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    outcome = run(capsys, "train", recipe, "--out", tmp_path / "run")
    assert_one_sentence(outcome, "accelerate, tensorboard", "pip install 'wan-vae[train]'")
    assert not (tmp_path / "run").exists()
