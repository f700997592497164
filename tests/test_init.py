"""The names that the package exports."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import wan_vae

SCRIPT = """
from fractions import Fraction
import torch
from wan_vae import Plan, WanVAE, encode_file
vae = WanVAE.from_pretrained("nano")
video: torch.Tensor = vae.decode(vae.encode(torch.zeros(1, 3, 5, 64, 64)))
plan: Plan = vae.plan("encode", frames=5, height=64, width=64, memory="1GiB")
result = encode_file("a.mp4", "a.safetensors", vae, fps=Fraction(16), progress=lambda done, total: print(done / total))
print(result.shape, result.frames_per_second, plan.peak)
"""


def test_dir_lists_the_exported_names_only() -> None:
    assert dir(wan_vae) == sorted(wan_vae.__all__)
    assert not {"Any", "TYPE_CHECKING"} & set(dir(wan_vae))


@pytest.mark.parametrize("name", wan_vae.__all__)
def test_exported_name_can_be_imported(name: str) -> None:
    assert getattr(wan_vae, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = wan_vae.nonsense


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is missing; install the extra 'lint'")
def test_users_script_passes_mypy_strict(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    star = SCRIPT.replace("import Plan, WanVAE, encode_file", "import *")
    scripts = {"script.py": SCRIPT, "star.py": star, "wrong.py": SCRIPT + "result.nonsense\n"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--ignore-missing-imports",
            *scripts,
        ],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(root)},
        capture_output=True,
        text=True,
    )
    faults = [line for line in checked.stdout.splitlines() if ": error: " in line]
    codes = [(line.partition(":")[0], line.rpartition("[")[2].rstrip("]")) for line in faults]
    assert codes == [("wrong.py", "attr-defined")], checked.stdout + checked.stderr
