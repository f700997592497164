"""Print the lowest version of every package that the installed wan-vae promises to work with, for `pip install`.

python scripts/lowest_versions.py train test > lowest.txt
"""

import sys
from collections.abc import Iterable
from importlib.metadata import requires

from packaging.requirements import Requirement


def lowest(extras: Iterable[str]) -> set[str]:
    """Return the requirements of the package and of some of its extras, with "==" for ">="."""
    found: set[str] = set()
    for text in requires("wan-vae") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        exact = str(wanted.specifier).replace(">=", "==")
        found |= lowest(wanted.extras) if wanted.name == "wan-vae" else {wanted.name + exact}
    return found


if __name__ == "__main__":
    print("\n".join(sorted(lowest(sys.argv[1:]))))
