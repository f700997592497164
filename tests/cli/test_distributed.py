"""The exit of a process that shares its command with others."""

import subprocess
import sys

import pytest
import torch

from wan_vae.cli import distributed
from wan_vae.errors import UserError

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


def test_more_processes_than_gpus_are_told_by_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**launched, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_shared", False)
    monkeypatch.setattr(distributed, "_together", True)
    monkeypatch.setattr(distributed, "torch_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="torchrun started 2 processes on a machine with 1 GPUs; start one for each"):
        distributed.join(2, "cuda")
