"""Which code a measurement was made with."""

import subprocess
from importlib.metadata import version
from pathlib import Path


def code_version() -> str:
    """Return the package's version and, in a git checkout, its commit, with "-dirty" where files differ from it."""
    root = Path(__file__).resolve().parents[1]
    described = None
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            described = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            described = None  # no git here, or it does not trust this folder
    return version("wan_vae") if described is None else f"{version('wan_vae')}, commit {described}"
