"""`wan-vae benchmark`: what it measures and writes, and how it ends."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from scripts.benchmark_table import markdown
from tests.cli.running import run, start
from tests.cli.test_errors import assert_one_sentence, listing
from wan_vae.benchmark import run as benchmark_run
from wan_vae.cli import main
from wan_vae.config import load_config

SMALL = ("--size", "32x16", "--frames", "5", "--device", "cpu", "--threads", "1", "--warmup", "0")


class Finished(NamedTuple):
    path: Path
    printed: str

    def record(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))


def finish(path: Path, *arguments: object) -> Finished:
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as exit_:
        main(["benchmark", *SMALL, "--json", str(path), *map(str, arguments)])
    assert not exit_.value.code
    return Finished(path, out.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    pytest.importorskip("diffusers")
    path = tmp_path_factory.mktemp("benchmark") / "speed_tiny.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_run, "openvino_computes", lambda dtype, device: False)  # it compiles for a minute
        return finish(path, "--preset", "tiny", "--runs", 2, "--dtype", "fp32", "--dtype", "bf16")


def of(entries: Sequence[dict[str, Any]], **wanted: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if wanted.items() <= entry.items()]


def test_record_describes_machine_model_and_clip(finished: Finished) -> None:
    record = finished.record()
    assert record["wan_vae"].startswith(version("wan_vae"))
    assert (record["torch"], record["diffusers"]) == (torch.__version__, version("diffusers"))
    assert record["date"].endswith("+00:00")
    assert record["machine"].keys() == {"device", "name", "cpu", "cores", "instructions", "threads"}
    assert (record["machine"]["device"], record["machine"]["threads"]) == ("cpu", 1)
    config = load_config("tiny").to_dict()
    assert record["model"] == {"name": "tiny", "weights": "random, seed 0", "config": config}
    shapes = {"video": [1, 3, 5, 16, 32], "latents": [1, 16, 2, 2, 4]}
    assert record["clip"] == {"frames": 5, "width": 32, "height": 16} | shapes
    assert (record["runs"], record["warmup"]) == (2, 0)
    assert record["ceilings"]["matmul_flops_per_second"].keys() == {"fp32", "bf16"}


def test_record_has_figures_of_every_call(finished: Finished) -> None:
    record = finished.record()
    assert record["profiles"] is None
    assert len(record["results"]) == 2 * 2 * 2
    for result in record["results"]:
        assert len(result["seconds"]) == 2
        assert result["median_seconds"] == pytest.approx(median(result["seconds"]))
        assert result["flops_per_second"] == pytest.approx(result["flops"] / result["median_seconds"])
        ceiling = record["ceilings"]["matmul_flops_per_second"][result["dtype"]]
        assert result["share_of_matmul"] == pytest.approx(result["flops_per_second"] / ceiling)
        assert result["share_of_matmul"] > 0
        assert result["share_of_copy"] > 0
        assert sys.platform != "linux" or result["peak_bytes"] == result["peaks"][0]["held"] >= 0
        assert result["peak_reserved_bytes"] is None
    (ours,), (theirs,) = (
        of(record["results"], direction="decode", dtype="bf16", implementation=name)
        for name in ("wan_vae", "diffusers")
    )
    assert ours["flops"] < theirs["flops"]  # for the convolution after an upsampling has fewer taps


def test_record_ratios_are_of_runs_of_one_round(finished: Finished) -> None:
    record = finished.record()
    assert [(each["dtype"], each["against"]) for each in of(record["ratios"], direction="encode")] == [
        ("fp32", "fp32"),
        ("bf16", "bf16"),
        ("bf16", "fp32"),
    ]
    for ratio in record["ratios"]:
        (ours,) = of(record["results"], direction=ratio["direction"], dtype=ratio["dtype"], implementation="wan_vae")
        (theirs,) = of(
            record["results"], direction=ratio["direction"], dtype=ratio["against"], implementation=ratio["over"]
        )
        pairs = [their / our for our, their in zip(ours["seconds"], theirs["seconds"], strict=True)]
        assert ratio["pairs"] == pytest.approx(pairs)
        assert ratio["median"] == pytest.approx(median(pairs))


def test_record_errors_of_all_are_small(finished: Finished) -> None:
    errors = finished.record()["errors"]
    assert errors["reference"] == "diffusers in float64"
    assert len(errors["outputs"]) == len(finished.record()["results"])
    for output in errors["outputs"]:
        assert len(output["by_frame"]) == (2 if output["direction"] == "encode" else 5)
        assert output["worst"] == max(output["by_frame"])
        relative = output["mean"] / output["scale"]
        assert (1e-9 < relative < 1e-5) if output["dtype"] == "fp32" else (1e-5 < relative < 0.1)


def test_benchmark_prints_tables(finished: Finished) -> None:
    assert "tiny (weights: random, seed 0), 5 frames of 32x16, on " in finished.printed
    for heading in ("times as fast", "than its fp32", "of matmul", "against diffusers in float64:"):
        assert heading in finished.printed
    assert markdown([finished.path]).count("| tiny, 5 frames of 32x16 |") == 4


# In processes of its own alone: it takes gigabytes, and what it does to a process is not for other tests.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "frames", "dtype", "least", "most"),
    [("tiny", 5, "bf16", 1e-5, 0.1), ("nano", 5, "fp32", 0, 1e-5), ("nano", 1, "fp32", 0, 1e-5)],
)
def test_openvino_computes_the_same_where_it_is_installed(
    preset: str, frames: int, dtype: str, least: float, most: float, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    finished = finish(tmp_path / "out.json", "--preset", preset, "--frames", frames, "--dtype", dtype, "--runs", 1)
    record = finished.record()
    assert len(of(record["ratios"], over="openvino", dtype=dtype, against=dtype)) == 2
    outputs = of(record["errors"]["outputs"], implementation="openvino")
    assert len(outputs) == 2
    for output in outputs:
        assert least < output["mean"] / output["scale"] < most
    assert "than openvino" in finished.printed


@pytest.mark.slow
def test_benchmark_goes_on_without_openvino_where_its_process_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_run, "openvino_computes", lambda dtype, device: True)
    call = benchmark_run.Worker.call

    def ended(worker: benchmark_run.Worker, function: Any, *args: Any) -> Any:
        if worker._name == "openvino" and function.__name__ == "call_seconds":
            worker.process.kill()
        return call(worker, function, *args)

    monkeypatch.setattr(benchmark_run.Worker, "call", ended)
    pytest.importorskip("openvino")
    options = ("--preset", "tiny", "--dtype", "fp32", "--directions", "decode", "--runs", 2, "--no-errors")
    record = finish(tmp_path / "out.json", *options).record()
    assert "OpenVINO is left out" in caplog.text
    assert record["openvino"] is None
    assert "openvino" not in {each["implementation"] for each in record["results"]}
    assert {len(each["seconds"]) for each in record["results"]} == {2}


@pytest.mark.slow
def test_benchmark_alone_profiles_a_checkpoint(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_run, "openvino_computes", lambda dtype, device: False)
    options = ("--checkpoint", checkpoint, "--dtype", "fp32", "--directions", "decode", "--runs", 1, "--profile")
    alone = finish(tmp_path / "out.json", *options)
    assert "diffusers takes 4 frames at a time" in caplog.text
    assert "measured without it" in caplog.text
    record = alone.record()
    assert record["diffusers"] is None
    assert (record["model"]["name"], record["ratios"]) == (checkpoint.name, [])
    assert record["model"]["weights"].startswith("SHA-256 ")
    assert [(each["direction"], each["implementation"]) for each in record["results"]] == [("decode", "wan_vae")]
    assert record["errors"]["reference"] == "wan_vae in float64"
    (profile,) = record["profiles"]
    assert (profile["direction"], profile["dtype"]) == ("decode", "fp32")
    assert "decoder.levels.0.blocks.*.conv1" in {spent["name"] for spent in profile["layers"]}
    assert any("conv" in spent["name"] for spent in profile["operations"])
    for kind in ("layers", "operations"):
        assert f", by {kind}:" in alone.printed
    assert listing(tmp_path).keys() == {"out.json"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--frames", "16"), ("16", "13 or 17")),
        (("--frames", "0"), ("--frames",)),
        (("--size", "30x16"), ("30x16", "32x16")),
        (("--size", "large"), ("large", "WIDTHxHEIGHT")),
        (("--dtype", "fp32,fp8"), ("fp32,fp8", "bf16")),
        (("--dtype", ""), ("--dtype is empty",)),
        (("--directions", "both"), ("both", "encode, decode")),
        (("--runs", "0"), ("--runs",)),
        (("--threads", "0"), ("--threads",)),
        (("--checkpoint", "nano", "--preset", "tiny"), ("--checkpoint and --preset",)),
        (("--checkpoint", "nowhere"), ("nowhere",)),
        (("--preset", "nowhere"), ("nowhere", "wan2.1")),
        (("--json", "/dev/null/out.json"), ("/dev/null",)),
        (("--speed",), ("--speed",)),
    ],
)
def test_benchmark_with_wrong_options_prints_one_sentence(
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    preset = () if {"--checkpoint", "--preset"} & set(arguments) else ("--preset", "tiny")
    assert_one_sentence(run(capsys, "benchmark", *SMALL, *preset, *arguments), *words)
    assert not any(tmp_path.iterdir())


def test_benchmark_json_exists_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.json").write_text("kept", encoding="utf-8")
    assert_one_sentence(run(capsys, "benchmark", "--json", tmp_path / "out.json"), "out.json exists", "--overwrite")
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == "kept"


def test_benchmark_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    arguments = (*SMALL, "--preset", "tiny", "--runs", "100000", "--json", tmp_path / "out.json", "--quiet")
    process = start("benchmark", *arguments, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while len(children := psutil.Process(process.pid).children()) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1)
        assert process.poll() is None, "it ended too early to be interrupted"
        os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches all of them
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (
        -signal.SIGINT,
        "",
        "wan-vae: interrupted; the outputs that are there are whole.\n",
    )
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not any(tmp_path.iterdir())


def test_script_is_the_command() -> None:
    script = Path(__file__).parents[2] / "scripts" / "benchmark.py"
    process = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "wan-vae benchmark" in process.stdout
