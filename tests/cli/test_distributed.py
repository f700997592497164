"""The exit of a process that shares its command with others."""

import subprocess
import sys

import pytest

FAILURES = {
    "a mistake": (2, "main(['info', 'none.safetensors', '--quiet'])"),
    "a signal": (-15, "app.command()(lambda: signal.raise_signal(signal.SIGTERM)); main([], app)"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("shared", [False, True])
def test_failure_in_a_process_group_ends_the_process_at_once(failure: str, shared: bool) -> None:
    expected, fail = FAILURES[failure]
    code = f"""
import atexit, signal, typer
import torch.distributed as dist
from wan_vae.cli import main
atexit.register(print, "cleaned up")
app = typer.Typer(name="x")
if {shared}:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
{fail}
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == expected, ended.stderr
    assert ended.stdout == ("" if shared else "cleaned up\n")
    assert ended.stderr.count("wan-vae: ") == 1
