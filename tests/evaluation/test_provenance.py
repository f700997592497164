"""A measurement names the code it was made with, in a checkout and out of one."""

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from wan_vae.evaluation import evaluate as provenance


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wan_vae").mkdir()
    module = tmp_path / "wan_vae" / "provenance.py"
    module.touch()
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def test_an_installed_package_has_a_version(package: Path) -> None:
    assert provenance.code_version() == version("wan_vae")


def test_a_folder_that_git_cannot_read_has_a_version(package: Path) -> None:
    (package / ".git").write_text("not a checkout")
    assert provenance.code_version() == version("wan_vae")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_checkout_has_a_commit_and_says_when_it_was_changed(package: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(package), *arguments], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    clean = provenance.code_version()
    assert clean.startswith(f"{version('wan_vae')}, commit ")
    (package / "wan_vae" / "provenance.py").write_text("changed")
    assert provenance.code_version() == f"{clean}-dirty"
