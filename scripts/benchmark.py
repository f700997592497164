"""`wan-vae benchmark` for people who cloned the repository and did not install it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.__main__ import main

# The processes that measure import this file, too.
if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
