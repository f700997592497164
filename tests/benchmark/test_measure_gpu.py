import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scripts.benchmark_table import markdown
from scripts.measure_gpu import Measurer, stages

ROOT = Path(__file__).parents[2]
# What a machine with a GPU may lack; a name that is None in sys.modules cannot be imported.
MISSING = ("av", "diffusers", "imageio", "pydantic", "typer")
BLOCKED = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({MISSING}))
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu_lines.jsonl").read_text(encoding="utf-8").splitlines()]


def measurer_of(folder: Path, budget: float) -> Measurer:
    return Measurer(Namespace(dry_run=True, folder=folder, budget=budget, commit="abc"), folder)


@pytest.mark.slow
def test_dry_run_without_optional_packages_completes_every_stage(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, "scripts/measure_gpu.py", "--dry-run", "--folder", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = lines_of(tmp_path)
    assert list(dict.fromkeys(line["stage"] for line in lines if line["stage"] != "log")) == [
        name for name, *_ in stages(mock.Mock())
    ]
    assert not [line for line in lines if "error" in line or "skipped" in line or line.get("returncode")]
    assert all({"device", "wan_vae", "torch", "cudnn", "triton", "driver"} <= line["on"].keys() for line in lines)
    assert json.loads((tmp_path / "gpu_profile.json").read_text(encoding="utf-8"))["operations"]
    rows = [line for line in markdown(sorted(tmp_path.glob("speed_*.json"))).splitlines() if "| bf16 |" in line]
    assert len(rows) == 8  # six calls of Wan2.1's sizes, two of another


def test_stage_that_fails_writes_its_error_and_the_next_one_runs(tmp_path: Path) -> None:
    measurer = measurer_of(tmp_path, budget=100)

    def fail(name: str) -> None:
        raise RuntimeError("out of\nluck")

    measurer.run("first", 0, fail)
    measurer.run("second", 0, lambda name: measurer.say(name, value=1))
    first, second = lines_of(tmp_path)
    assert (first["stage"], first["error"]) == ("first", "luck")
    assert (second["stage"], second["value"], second["on"]["commit"]) == ("second", 1, "abc")


def test_stage_that_does_not_fit_the_time_left_is_skipped(tmp_path: Path) -> None:
    measurer_of(tmp_path, budget=10).run("long", 60, pytest.fail)
    [line] = lines_of(tmp_path)
    assert line["stage"] == "long"
    assert line["skipped"].startswith("it takes about 60 s, and ")
