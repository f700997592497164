"""Where what was built or measured on this machine is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/wan_vae` or `~/.cache/wan_vae`; a folder that cannot be, where there is no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wan_vae"
    except RuntimeError:  # a user without a home, as containers have them
        return Path(os.devnull) / "wan_vae"
