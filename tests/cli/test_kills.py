"""A few kills at random moments; `python scripts/kill_commands.py --kills 100` makes more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_commands_lose_nothing() -> None:
    script = Path(__file__).parents[2] / "scripts" / "kill_commands.py"
    command = [sys.executable, script, "--kills", "6", "--seed", "1"]
    env = {**os.environ, "WAN_VAE_BUILD_KERNELS": "0"}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("6 kills, 0 lost or wrong\n")
