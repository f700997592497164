import subprocess
import sys

WITHOUT_TRITON = """
import sys

sys.modules["triton"] = None  # makes its import fail
import torch
from wan_vae import WanVAE

vae = WanVAE.from_pretrained("nano")
with torch.inference_mode():
    print(tuple(vae.decode(vae.encode(torch.zeros(1, 3, 5, 16, 16))).shape))
"""


def test_inference_on_a_cpu_needs_no_triton() -> None:
    found = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "(1, 3, 5, 16, 16)"
