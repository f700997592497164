"""The imports of a command, which take seconds before the first frame."""

import os
import subprocess
import sys

import pytest


def test_commands_import_no_heavy_packages() -> None:
    used = ("cli.common", "compare", "files", "io", "reconstruction")
    heavy = {"diffusers", "lpips", "scipy", "torchmetrics", "torchvision", "transformers"}
    code = f"import sys; {'; '.join(f'import wan_vae.{name}' for name in used)}; print(*({heavy} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == []


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "1000"}, "1000")],
)
def test_openmp_threads_spin_less_unless_the_user_decides(chosen: dict[str, str], spins: str) -> None:
    code = """
import os, sys, typer
from wan_vae.cli import main
app = typer.Typer(name="x")
app.command()(lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules))
main([], app)
"""
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=env | chosen, capture_output=True, text=True, check=True
    )
    assert finished.stdout.split() == [spins, "False"]
