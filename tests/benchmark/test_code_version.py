"""The version that benchmarks keep."""

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from wan_vae.benchmark import run
from wan_vae.benchmark.run import code_version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wan_vae" / "benchmark").mkdir(parents=True)
    module = tmp_path / "wan_vae" / "benchmark" / "run.py"
    module.touch()
    monkeypatch.setattr(run, "__file__", str(module))
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
    (package / "wan_vae" / "benchmark" / "run.py").write_text("changed")
    assert code_version() == f"{clean}-dirty"
