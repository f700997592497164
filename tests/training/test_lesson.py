import torch

from tests.helpers import random_latents, random_vae, random_video, small_config
from wan_vae.model.halo import Halo
from wan_vae.training.trainer import Lesson

CONFIG = small_config()


def test_without_a_code_a_sample_is_decoded() -> None:
    vae, video = random_vae(CONFIG), random_video(5, 8, 8)
    torch.manual_seed(0)
    reconstruction, posterior = Lesson(vae)(video)
    torch.manual_seed(0)
    expected, _ = vae(video, sample=True)
    assert torch.equal(reconstruction, expected)
    torch.testing.assert_close(posterior.mean, vae.posterior(video).mean)


def test_a_code_is_decoded_with_the_posteriors_noise() -> None:
    vae, video, code = random_vae(CONFIG), random_video(5, 8, 8), random_latents(CONFIG, 3, 4, 4)
    torch.manual_seed(0)
    reconstruction, posterior = Lesson(vae)(video, code)
    torch.manual_seed(0)
    noise = posterior.sample() - posterior.mean
    assert noise.std() > 0.1
    torch.testing.assert_close(reconstruction, vae.pixels(code + noise, Halo()))


def test_taught_halves_learn_apart() -> None:
    vae, video, code = random_vae(CONFIG).requires_grad_(True), random_video(5, 8, 8), random_latents(CONFIG, 3, 4, 4)
    reconstruction, posterior = Lesson(vae)(video, code)
    posterior.mean.sum().backward(retain_graph=True)
    assert all(weight.grad is None for weight in vae.decoder.parameters())
    assert any(weight.grad is not None for weight in vae.encoder.parameters())
    reconstruction.sum().backward()
    assert any(weight.grad is not None for weight in vae.decoder.parameters())
    # Where the posterior is centered does not matter to a decoder that is given the code.
    assert vae.quant_conv.bias is not None
    assert vae.quant_conv.bias.grad is not None
    torch.testing.assert_close(vae.quant_conv.bias.grad[:3], torch.full((3,), 3.0 * 4 * 4, dtype=torch.float64))
