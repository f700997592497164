"""The imports of a command, which take seconds before the first frame."""

import subprocess
import sys


def test_commands_import_no_heavy_packages() -> None:
    used = ("cli.common", "files", "io")
    heavy = {"diffusers", "lpips", "scipy", "torchmetrics", "torchvision", "transformers"}
    code = f"import sys; {'; '.join(f'import wan_vae.{name}' for name in used)}; print(*({heavy} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == []
