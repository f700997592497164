"""How a process that shares its command with others ends."""

import subprocess
import sys

import pytest

FAILURES = {
    "a mistake": (2, "main(['info', 'none.safetensors'])"),
    "a signal": (-15, "app.command()(lambda: signal.raise_signal(signal.SIGTERM)); main([], app)"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("shared", [False, True])
def test_after_a_failure_python_does_not_take_itself_down_under_the_threads_of_a_group(
    failure: str, shared: bool
) -> None:
    expected, fail = FAILURES[failure]
    code = f"""
import atexit, signal, typer
import torch.distributed as dist
from wan_vae.cli import main
atexit.register(print, "taken down")
app = typer.Typer(name="x")
if {shared}:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
{fail}
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == expected, ended.stderr
    assert ended.stdout == ("" if shared else "taken down\n")
    assert ended.stderr.count("wan-vae: ") == 1
