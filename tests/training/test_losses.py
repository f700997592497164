import copy
from math import log10
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tests.helpers import random_video
from tests.training.runs import stage_values
from wan_vae.posterior import Posterior
from wan_vae.training.checkpoint import NonFiniteError
from wan_vae.training.losses import (
    ROUNDING_ERROR,
    DiscriminatorLoss,
    PatchDiscriminator,
    kl_per_value,
    mean_psnr,
    random_frames,
    training_losses,
)
from wan_vae.training.recipe import Stage


@pytest.mark.parametrize("count", [1, 3])
def test_random_frames_draws_the_same_frames_of_both(count: int) -> None:
    video = torch.arange(2 * 5).view(2, 1, 5, 1, 1).expand(-1, 3, -1, 4, 6).float()
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        ours, theirs = random_frames(video + 100, video, count)
        assert ours.shape == theirs.shape == (2 * count, 3, 4, 6)
        assert torch.equal(ours, theirs + 100)
        numbers = theirs[:, 0, 0, 0].view(2, count).long()
        assert torch.equal(numbers // 5, torch.tensor([[0], [1]]).expand(2, count))
        seen |= set(numbers.flatten().tolist())
    assert seen == set(range(10))


def test_random_frames_pass_gradients_to_drawn_frames_only() -> None:
    reconstruction = torch.zeros(1, 3, 6, 2, 2, requires_grad=True)
    chosen, _ = random_frames(reconstruction, torch.zeros(1, 3, 6, 2, 2), 1)
    chosen.sum().backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.sum() == 12
    assert (reconstruction.grad.sum(dim=(0, 1, 3, 4)) > 0).sum() == 1


def test_kl_per_value_divides_by_the_values_of_a_clip() -> None:
    mean = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1, 1).expand(3, 2, 2, 4, 5)
    posterior = Posterior(mean, torch.full_like(mean, 0.5))
    video = torch.zeros(3, 3, 5, 32, 40)
    # (m^2 + s^2 - 1 - log s^2) / 2 for each of 2 * 4 * 5 latents of two channels, over 3 * 5 * 32 * 40 values.
    each = [(m**2 + torch.tensor(0.5).exp().item() - 1.5) / 2 for m in (1, 2)]
    assert kl_per_value(posterior, video).item() == pytest.approx(40 * sum(each) / 19200)
    assert kl_per_value(Posterior(torch.zeros_like(mean), torch.zeros_like(mean)), video) == 0


def test_mean_psnr_is_the_mean_of_the_frames_up_to_the_error_of_rounding() -> None:
    video = torch.zeros(2, 3, 3, 4, 4)
    # In [0, 1] the errors of the frames are 0.1, 0.01 and nothing at all: 20, 40 and, from rounding alone, 58.9 dB.
    errors = torch.tensor([0.2, 0.02, 0.0]).view(3, 1, 1)
    assert mean_psnr(video + errors, video).item() == pytest.approx((20 + 40 + 58.9) / 3, abs=0.05)


def test_mean_psnr_weighs_frames_with_large_and_small_errors_alike() -> None:
    errors = torch.tensor([0.2, 0.05]).view(2, 1, 1).expand(1, 3, 2, 4, 4).clone().requires_grad_(True)
    mean_psnr(errors, torch.zeros_like(errors)).backward()
    assert errors.grad is not None
    relative = (errors.grad * errors).sum(dim=(0, 1, 3, 4))
    assert relative.tolist() == pytest.approx([relative[0].item()] * 2, rel=0.02)


VIDEO = random_video(3, 8, 8, batch=2, dtype=torch.float32)
RECONSTRUCTION = VIDEO + 0.25
POSTERIOR = Posterior(torch.full((2, 3, 2, 4, 4), 0.5), torch.zeros(2, 3, 2, 4, 4))


class Constant:
    """Stands in for LPIPS and for the discriminator."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.shape == b.shape == (2 * 2, 3, 8, 8)
        return torch.tensor([1.0, 3.0])

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        return torch.tensor(-5.0)


def losses(step: int = 0, **weights: Any) -> dict[str, float]:
    stage = Stage.model_validate(stage_values(loss=weights))
    found = training_losses(stage, step, VIDEO, RECONSTRUCTION, POSTERIOR, Constant(), Constant())
    return {name: loss.item() for name, loss in found.items()}


def test_training_losses_are_weighted_in_the_total_only() -> None:
    found = losses(l1=2.0, mse=0.5, psnr=0.1, kl=3.0, lpips=5.0, lpips_frames=2, adversarial=7.0)
    kl = kl_per_value(POSTERIOR, VIDEO).item()
    assert kl > 0
    expected = {
        "l1": 0.25,
        "mse": 0.0625,
        "psnr": -10 * log10(0.125**2 + ROUNDING_ERROR),
        "kl": kl,
        "lpips": 2.0,
        "adversarial": -5.0,
    }
    expected["total"] = 0.5 + 0.5 * 0.0625 - 0.1 * expected["psnr"] + 3 * kl + 10 - 35
    assert found == pytest.approx(expected)


def test_training_losses_without_weight_are_not_computed() -> None:
    assert losses().keys() == {"l1", "kl", "total"}
    assert "adversarial" not in losses(step=2, adversarial=1.0, adversarial_warmup=3)
    assert "adversarial" in losses(step=3, adversarial=1.0, adversarial_warmup=3)


pytestmark = pytest.mark.usefixtures("own_accelerate")

CLIP = 1.0


@pytest.fixture
def discriminator(own_accelerate: None) -> DiscriminatorLoss:
    torch.manual_seed(0)
    return DiscriminatorLoss(Accelerator(), CLIP)


def weights(discriminator: DiscriminatorLoss) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in discriminator.model.parameters()]


@pytest.mark.parametrize(
    ("shape", "scores"), [((1, 16, 16), (1, 2, 2)), ((5, 32, 24), (2, 4, 3)), ((17, 16, 48), (5, 2, 6))]
)
def test_patch_discriminator_output_shape(shape: tuple[int, int, int], scores: tuple[int, int, int]) -> None:
    video = random_video(*shape, batch=2, dtype=torch.float32)
    assert PatchDiscriminator()(video).shape == (2, 1, *scores)


def test_generator_loss_gives_the_discriminator_no_gradients(discriminator: DiscriminatorLoss) -> None:
    reconstruction = random_video(3, 16, 16, dtype=torch.float32).requires_grad_()
    loss = discriminator.generator_loss(reconstruction)
    loss.backward()
    assert loss.item() == pytest.approx(-discriminator.model(reconstruction).mean().item())
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in discriminator.model.parameters())
    assert all(weight.requires_grad for weight in discriminator.model.parameters())


def test_discriminator_update_learns_to_separate_real_and_fake(discriminator: DiscriminatorLoss) -> None:
    losses = []
    for seed in range(12):
        real = random_video(3, 16, 16, dtype=torch.float32, seed=seed)
        fake = (0.2 * random_video(3, 16, 16, dtype=torch.float32, seed=100 + seed)).requires_grad_()
        losses.append(discriminator.update(real, fake, 1e-3).item())
        assert fake.grad is None
    assert losses[0] == pytest.approx(1, abs=0.2)
    assert losses[-1] < 0.3
    assert discriminator.model(real).mean() > discriminator.model(fake).mean() + 1
    assert discriminator.generator_loss(fake) > discriminator.generator_loss(real)


def test_discriminator_update_with_rate_zero_changes_no_weight(discriminator: DiscriminatorLoss) -> None:
    before = weights(discriminator)
    video = random_video(3, 16, 16, dtype=torch.float32)
    discriminator.update(video, -video, 0.0)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(discriminator), strict=True))
    discriminator.update(video, -video, 0.01)
    assert not any(torch.equal(one, other) for one, other in zip(before, weights(discriminator), strict=True))


def test_discriminator_resumed_from_its_state_continues_identically(discriminator: DiscriminatorLoss) -> None:
    videos = [random_video(3, 16, 16, dtype=torch.float32, seed=seed) for seed in range(3)]
    discriminator.update(videos[0], -videos[0], 0.01)
    state = copy.deepcopy(discriminator.state_dict())
    other = DiscriminatorLoss(Accelerator(), CLIP)
    other.load_state_dict(state)
    for one in (discriminator, other):
        for video in videos[1:]:
            one.update(video, 0.5 * video, 0.01)
    assert all(torch.equal(one, two) for one, two in zip(weights(discriminator), weights(other), strict=True))


def test_discriminator_update_clips_gradients() -> None:
    video = random_video(3, 16, 16, dtype=torch.float32)
    lengths = {}
    for clip in (1e-3, 1e3):
        torch.manual_seed(0)
        discriminator = DiscriminatorLoss(Accelerator(), clip)
        discriminator.update(video, -video, 0.01)
        # After one step AdamW's momentum is half of the gradient, because its beta is 0.5.
        momenta = [state["exp_avg"] for state in discriminator.state_dict()["optimizer"]["state"].values()]
        lengths[clip] = 2 * torch.cat([momentum.flatten() for momentum in momenta]).norm().item()
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert lengths[1e3] > 0.01


def test_discriminator_update_nonfinite_raises_and_changes_no_weight(discriminator: DiscriminatorLoss) -> None:
    before = weights(discriminator)
    video = random_video(3, 16, 16, dtype=torch.float32)
    with pytest.raises(NonFiniteError, match="discriminator is nan"):
        discriminator.update(video, video * float("nan"), 0.01)
    discriminator.model.norms[1].register_full_backward_hook(lambda module, into, out: (into[0] * float("inf"),))
    with pytest.raises(NonFiniteError, match=r"discriminator_gradient_norm is (inf|nan)"):
        discriminator.update(video, -video, 0.01)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(discriminator), strict=True))
