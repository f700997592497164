import torch

from wan_vae import Posterior


def posterior() -> Posterior:
    generator = torch.Generator().manual_seed(0)
    return Posterior.from_moments(torch.randn(2, 6, 2, 3, 4, dtype=torch.float64, generator=generator))


def test_kl_is_that_of_torch_distributions() -> None:
    ours = posterior()
    normal = torch.distributions.Normal(ours.mean, (0.5 * ours.logvar).exp())
    standard = torch.distributions.Normal(torch.zeros_like(ours.mean), torch.ones_like(ours.mean))
    expected = torch.distributions.kl_divergence(normal, standard).sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(ours.kl(), expected)


def test_kl_does_not_overflow_in_half_precision() -> None:
    loud = Posterior(torch.zeros(1, 1, 1, 100, 100, dtype=torch.float16), torch.full((1, 1, 1, 100, 100), 12.0).half())
    assert torch.isfinite(loud.kl()).all()


def test_sample_has_the_mean_and_the_variance() -> None:
    ours = posterior()
    generator = torch.Generator().manual_seed(1)
    samples = torch.stack([ours.sample(generator) for _ in range(4000)])
    deviation = (0.5 * ours.logvar).exp()
    assert ((samples.mean(dim=0) - ours.mean).abs() / deviation).max() < 0.1
    assert ((samples.std(dim=0) / deviation) - 1).abs().max() < 0.1


def test_sample_repeats_with_its_generator() -> None:
    first, second = (posterior().sample(torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(posterior().mode(), posterior().mean)


def test_std_and_var_are_those_of_the_log_variance() -> None:
    ours = posterior()
    torch.testing.assert_close(ours.var.log(), ours.logvar)
    torch.testing.assert_close(ours.std.square(), ours.var)
    assert ours.std.shape == ours.var.shape == ours.mean.shape


def test_from_moments_clamps_the_log_variance() -> None:
    extreme = Posterior.from_moments(torch.tensor([0.0, 1e9]).view(1, 2, 1, 1, 1))
    assert extreme.logvar.item() == 20
    assert Posterior.from_moments(torch.tensor([0.0, -1e9]).view(1, 2, 1, 1, 1)).logvar.item() == -30
    assert torch.isfinite(extreme.kl()).all()


def test_sample_compiled_for_clips_of_any_size_draws_what_it_draws_uncompiled() -> None:
    def drawn(mean: torch.Tensor) -> torch.Tensor:
        # Sizes as the encoder's are: not a number, but computed of the clip's.
        return Posterior(mean[:, :, 1::2], mean[:, :, ::2][:, :, :-1]).sample()

    compiled = torch.compile(drawn, backend="eager", dynamic=True, fullgraph=True)
    for frames in (5, 9):
        mean = torch.zeros(1, 2, frames, 3, 4)
        torch.manual_seed(0)
        expected = drawn(mean)
        torch.manual_seed(0)
        assert torch.equal(compiled(mean), expected)


def test_posteriors_compare_by_identity_like_tensors_in_a_set() -> None:
    one, other = (Posterior(torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2)) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
