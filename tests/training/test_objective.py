from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import random_video
from tests.training.runs import stage_values
from wan_vae.posterior import Posterior
from wan_vae.training.losses import Objective, kl_per_value
from wan_vae.training.recipe import Stage

VIDEO = random_video(3, 8, 8, batch=2, dtype=torch.float32)
RECONSTRUCTION = VIDEO + 0.25
POSTERIOR = Posterior(torch.full((2, 3, 2, 4, 4), 0.5), torch.zeros(2, 3, 2, 4, 4))


class Constant:
    """Takes the place of LPIPS, and of an adversary."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.shape == b.shape == (2 * 2, 3, 8, 8)
        return torch.tensor([1.0, 3.0])

    def loss_of(self, reconstruction: Tensor) -> Tensor:
        return torch.tensor(-5.0)


def losses(step: int = 0, code: Tensor | None = None, **weights: Any) -> dict[str, float]:
    stage = Stage.model_validate(stage_values(loss=weights))
    found = Objective(Constant(), Constant())(stage, step, VIDEO, RECONSTRUCTION, POSTERIOR, code)
    return {name: loss.item() for name, loss in found.items()}


def test_losses_are_weighed_in_the_sum_alone() -> None:
    found = losses(l1=2.0, kl=3.0, lpips=5.0, lpips_frames=2, adversarial=7.0)
    kl = kl_per_value(POSTERIOR, VIDEO).item()
    assert kl > 0
    expected = {"l1": 0.25, "kl": kl, "lpips": 2.0, "adversarial": -5.0, "total": 0.5 + 3 * kl + 10 - 35}
    assert found == pytest.approx(expected)


def test_what_a_stage_does_not_weigh_is_not_measured() -> None:
    assert losses().keys() == {"l1", "kl", "total"}
    assert "adversarial" not in losses(step=2, adversarial=1.0, adversarial_warmup=3)
    assert "adversarial" in losses(step=3, adversarial=1.0, adversarial_warmup=3)


def test_a_code_is_taught() -> None:
    found = losses(l1=1.0, kl=0.0, code=torch.full((2, 3, 2, 4, 4), 2.0))
    assert found["code"] == pytest.approx(1.5**2)
    assert found["total"] == pytest.approx(0.25 + 1.5**2)
