import pytest
import torch

from wan_vae.posterior import Posterior
from wan_vae.training.losses import kl_per_value, random_frames


@pytest.mark.parametrize("count", [1, 3])
def test_random_frames_are_the_same_of_both(count: int) -> None:
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


def test_gradients_reach_the_chosen_frames_alone() -> None:
    reconstruction = torch.zeros(1, 3, 6, 2, 2, requires_grad=True)
    chosen, _ = random_frames(reconstruction, torch.zeros(1, 3, 6, 2, 2), 1)
    chosen.sum().backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.sum() == 12
    assert (reconstruction.grad.sum(dim=(0, 1, 3, 4)) > 0).sum() == 1


def test_kl_is_per_value_of_the_video() -> None:
    mean = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1, 1).expand(3, 2, 2, 4, 5)
    posterior = Posterior(mean, torch.full_like(mean, 0.5))
    video = torch.zeros(3, 3, 5, 32, 40)
    # Of a normal: (m^2 + s^2 - 1 - log s^2) / 2, for 2 * 4 * 5 latents of either channel, over 3 * 5 * 32 * 40 values.
    each = [(m**2 + torch.tensor(0.5).exp().item() - 1.5) / 2 for m in (1, 2)]
    assert kl_per_value(posterior, video).item() == pytest.approx(40 * sum(each) / 19200)
    assert kl_per_value(Posterior(torch.zeros_like(mean), torch.zeros_like(mean)), video) == 0
