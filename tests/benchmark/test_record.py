"""The record of a benchmark, and the version in it."""

import json
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.benchmark.records import make_record
from wan_vae.benchmark import record
from wan_vae.benchmark.implementations import DIFFUSERS, WAN_VAE
from wan_vae.benchmark.record import code_version, frame_errors, speedup
from wan_vae.benchmark.worker import OUTPUT


def test_frame_errors_are_those_of_each_frame(tmp_path: Path) -> None:
    truth = torch.full((1, 2, 3, 4, 5), 2.0, dtype=torch.float64)
    output = truth.clone().to(torch.bfloat16)
    output[:, :, 1] += 0.5
    output[:, 0, 2] -= 1.0
    for name, tensor in (("output", output), ("truth", truth)):
        save_file({OUTPUT: tensor}, tmp_path / name)
    errors = frame_errors(tmp_path / "output", tmp_path / "truth")
    assert errors["by_frame"] == pytest.approx((0.0, 0.5, 0.5**0.5))
    assert errors == {
        "mean": pytest.approx((0.5 + 0.5**0.5) / 3),
        "first": 0.0,
        "last": pytest.approx(0.5**0.5),
        "worst": pytest.approx(0.5**0.5),
        "by_frame": errors["by_frame"],
        "scale": 2.0,
    }


def test_speedup_compares_runs_pair_by_pair() -> None:
    ratio = speedup([1.0, 4.0, 2.0], [2.0, 4.0, 8.0])
    assert ratio["pairs"] == (2.0, 1.0, 4.0)
    assert (ratio["median"], ratio["least"], ratio["most"]) == (2.0, 1.0, 4.0)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.5, 2)), min_size=1, max_size=9))
def test_speedup_is_unaffected_by_a_change_of_machine_speed(rounds: list[tuple[float, float]]) -> None:
    ours = [machine for machine, _ in rounds]
    theirs = [machine * ratio for machine, ratio in rounds]
    assert speedup(ours, theirs)["pairs"] == pytest.approx([ratio for _, ratio in rounds])


def test_speedup_of_unequal_counts_raises() -> None:
    with pytest.raises(ValueError, match="argument"):
        speedup([1.0, 2.0], [1.0])


def test_results_are_shares_of_the_ceilings() -> None:
    found = {(each["dtype"], each["implementation"]): each for each in make_record()["results"]}
    ours = found["fp32", WAN_VAE]
    assert (ours["seconds"], ours["median_seconds"]) == ([1.0, 2.0, 1.0], 1.0)
    assert ours["flops_per_second"] == 4e9
    assert ours["share_of_matmul"] == 0.5
    assert ours["share_of_copy"] == pytest.approx(4 * 100 / 1.0 / 1000)
    theirs = found["bf16", DIFFUSERS]
    assert theirs["share_of_matmul"] == 8e9 / 0.5 / 16e9
    assert theirs["share_of_copy"] == pytest.approx(2 * 200 / 0.5 / 1000)


def test_ratios_pair_runs_of_the_same_round() -> None:
    found = {(each["dtype"], each["over"], each["against"]): each["pairs"] for each in make_record()["ratios"]}
    assert found == {
        ("fp32", "diffusers", "fp32"): (2.0, 1.0, 3.0),
        ("fp32", "openvino", "fp32"): (3.0, 1.5, 4.0),
        ("bf16", "diffusers", "bf16"): (2.0, 1.0, 1.25),
        ("bf16", "diffusers", "fp32"): (4.0, 4.0, 7.5),
        ("bf16", "openvino", "fp32"): (6.0, 6.0, 10.0),
    }
    assert make_record(alone=True)["ratios"] == []


def test_record_is_json() -> None:
    json.dumps(make_record(), allow_nan=False)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wan_vae" / "benchmark").mkdir(parents=True)
    module = tmp_path / "wan_vae" / "benchmark" / "record.py"
    module.touch()
    monkeypatch.setattr(record, "__file__", str(module))
    return tmp_path


def test_code_version_outside_a_checkout_is_the_version(package: Path) -> None:
    assert code_version() == version("wan_vae")


def test_code_version_in_a_broken_checkout_is_the_version(package: Path) -> None:
    (package / ".git").write_text("not a checkout")
    assert code_version() == version("wan_vae")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_code_version_in_a_checkout_has_the_commit_and_tells_changes(package: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(package), *arguments], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    clean = code_version()
    assert clean.startswith(f"{version('wan_vae')}, commit ")
    (package / "wan_vae" / "benchmark" / "record.py").write_text("changed")
    assert code_version() == f"{clean}-dirty"
