"""`wan-vae info` from a clone of the repository, without installation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.__main__ import main

main(["info", *sys.argv[1:]])
