import copy

import pytest
import torch
from accelerate import Accelerator

from tests.helpers import random_video
from wan_vae.training.checkpoint import NonFiniteError
from wan_vae.training.losses import Adversary, PatchDiscriminator

pytestmark = pytest.mark.usefixtures("own_accelerate")

CLIP = 1.0


@pytest.fixture
def adversary(own_accelerate: None) -> Adversary:
    torch.manual_seed(0)
    return Adversary(Accelerator(), CLIP)


def weights(adversary: Adversary) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in adversary.model.parameters()]


@pytest.mark.parametrize(
    ("shape", "scores"), [((1, 16, 16), (1, 2, 2)), ((5, 32, 24), (2, 4, 3)), ((17, 16, 48), (5, 2, 6))]
)
def test_scores_are_of_patches(shape: tuple[int, int, int], scores: tuple[int, int, int]) -> None:
    video = random_video(*shape, batch=2, dtype=torch.float32)
    assert PatchDiscriminator()(video).shape == (2, 1, *scores)


def test_its_loss_leaves_it_no_gradient(adversary: Adversary) -> None:
    reconstruction = random_video(3, 16, 16, dtype=torch.float32).requires_grad_()
    loss = adversary.loss_of(reconstruction)
    loss.backward()
    assert loss.item() == pytest.approx(-adversary.model(reconstruction).mean().item())
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in adversary.model.parameters())
    assert all(weight.requires_grad for weight in adversary.model.parameters())


def test_it_learns_to_tell_two_apart(adversary: Adversary) -> None:
    losses = []
    for seed in range(12):
        real = random_video(3, 16, 16, dtype=torch.float32, seed=seed)
        fake = (0.2 * random_video(3, 16, 16, dtype=torch.float32, seed=100 + seed)).requires_grad_()
        losses.append(adversary.learn(real, fake, 1e-3).item())
        assert fake.grad is None
    assert losses[0] == pytest.approx(1, abs=0.2)
    assert losses[-1] < 0.3
    assert adversary.model(real).mean() > adversary.model(fake).mean() + 1
    assert adversary.loss_of(fake) > adversary.loss_of(real)


def test_a_rate_of_zero_changes_nothing(adversary: Adversary) -> None:
    before = weights(adversary)
    video = random_video(3, 16, 16, dtype=torch.float32)
    adversary.learn(video, -video, 0.0)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(adversary), strict=True))
    adversary.learn(video, -video, 0.01)
    assert not any(torch.equal(one, other) for one, other in zip(before, weights(adversary), strict=True))


def test_it_goes_on_from_its_state(adversary: Adversary) -> None:
    videos = [random_video(3, 16, 16, dtype=torch.float32, seed=seed) for seed in range(3)]
    adversary.learn(videos[0], -videos[0], 0.01)
    state = copy.deepcopy(adversary.state_dict())
    other = Adversary(Accelerator(), CLIP)
    other.load_state_dict(state)
    for one in (adversary, other):
        for video in videos[1:]:
            one.learn(video, 0.5 * video, 0.01)
    assert all(torch.equal(one, two) for one, two in zip(weights(adversary), weights(other), strict=True))


def test_long_gradients_are_scaled_down() -> None:
    video = random_video(3, 16, 16, dtype=torch.float32)
    lengths = {}
    for clip in (1e-3, 1e3):
        torch.manual_seed(0)
        adversary = Adversary(Accelerator(), clip)
        adversary.learn(video, -video, 0.01)
        # After a single step AdamW's momentum is half of its gradient, by its beta.
        momenta = [state["exp_avg"] for state in adversary.state_dict()["optimizer"]["state"].values()]
        lengths[clip] = 2 * torch.cat([momentum.flatten() for momentum in momenta]).norm().item()
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert lengths[1e3] > 0.01


def test_what_is_not_a_number_changes_no_weight(adversary: Adversary) -> None:
    before = weights(adversary)
    video = random_video(3, 16, 16, dtype=torch.float32)
    with pytest.raises(NonFiniteError, match="discriminator is nan"):
        adversary.learn(video, video * float("nan"), 0.01)
    adversary.model.norms[1].register_full_backward_hook(lambda module, into, out: (into[0] * float("inf"),))
    with pytest.raises(NonFiniteError, match=r"discriminator_gradient_norm is (inf|nan)"):
        adversary.learn(video, -video, 0.01)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(adversary), strict=True))
