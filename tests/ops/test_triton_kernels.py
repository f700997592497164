import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the GPU kernels need Triton, which PyTorch for this machine comes without")

REPOSITORY = Path(__file__).parents[2]
CASES = "tests/ops/triton_cases.py"


@pytest.mark.parametrize(
    "interpreted",
    [
        pytest.param("1", id="interpreted", marks=pytest.mark.slow),
        pytest.param("0", id="compiled", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
    ],
)
def test_the_kernels_do_what_their_twins_do(interpreted: str) -> None:
    # In a process of its own, for the interpreter takes Triton's place for good, torch.compile's kernels included; and
    # without the fixtures that every session of tests begins with, which these need not wait for.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", CASES]
    environment = {**os.environ, "TRITON_INTERPRET": interpreted}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{run.stdout}\n{run.stderr}", pytrace=False)
    assert " passed" in run.stdout
