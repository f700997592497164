from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wan_vae.benchmark.run import compare
from wan_vae.benchmark.worker import OUTPUT


def test_errors_are_those_of_each_frame(tmp_path: Path) -> None:
    truth = torch.full((1, 2, 3, 4, 5), 2.0, dtype=torch.float64)
    output = truth.clone().to(torch.bfloat16)
    output[:, :, 1] += 0.5
    output[:, 0, 2] -= 1.0
    for name, tensor in (("output", output), ("truth", truth)):
        save_file({OUTPUT: tensor}, tmp_path / name)
    accuracy = compare(tmp_path / "output", tmp_path / "truth")
    assert accuracy.by_frame == pytest.approx((0.0, 0.5, 0.5**0.5))
    assert accuracy.to_dict() == {
        "mean": pytest.approx((0.5 + 0.5**0.5) / 3),
        "first": 0.0,
        "last": pytest.approx(0.5**0.5),
        "worst": pytest.approx(0.5**0.5),
        "by_frame": accuracy.by_frame,
        "scale": 2.0,
    }
