"""One run of the command at its quick settings, whose results the tests check."""

from pathlib import Path
from typing import NamedTuple

import pytest

from experiments.residual_blocks.__main__ import app
from experiments.residual_blocks.settings import Ablation, load_ablation
from experiments.residual_blocks.study import Study, run_study
from wan_vae.cli import main

ROOT = Path(__file__).parents[3]
QUICK = ROOT / "experiments" / "residual_blocks" / "configs" / "quick.yaml"
DOCUMENT = (
    "before\n<!-- verdicts -->\nold\n<!-- end of verdicts -->\nbetween\n<!-- table --><!-- end of table -->\nafter\n"
)


def run_script(*arguments: object) -> int:
    """Run the experiment's command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments], program=app)
    return exit_.value.code or 0


class QuickRun(NamedTuple):
    out: Path
    document: Path
    cache: Path


@pytest.fixture(scope="session")
def quick() -> Ablation:
    return load_ablation(QUICK)


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    folder = tmp_path_factory.mktemp("ablation")
    found = QuickRun(folder / "out", folder / "document.md", folder / "cache")
    found.document.write_text(DOCUMENT)
    options = ("--document", found.document, "--cache", found.cache, "--workers", 1)
    assert run_script(QUICK, "--out", found.out, *options) == 0
    return found


@pytest.fixture(scope="session")
def study(quick: Ablation, quick_run: QuickRun) -> Study:
    said = []
    found = run_study(quick, quick_run.cache, 1, said.append)
    assert [line.split(" of ")[0] for line in said] == ["0", "0"]
    return found
