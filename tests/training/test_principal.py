import torch
from einops import rearrange
from torch import Tensor

from tests.helpers import random_video, small_config
from wan_vae.config import VAEConfig
from wan_vae.training.initialization import PrincipalComponents

CONFIG = small_config()
SCALES = (3.0, 1.0, 0.5)


def low_rank_videos(count: int) -> list[Tensor]:
    """Clips whose patches are a plane plus one direction of change, which the first frame does not have."""
    generator = torch.Generator().manual_seed(0)
    time, space = CONFIG.temporal_compression, CONFIG.spatial_compression
    still = torch.randn(2, 3, 1, space, space, generator=generator, dtype=torch.float64).expand(-1, -1, time, -1, -1)
    change = torch.randn(1, 3, 1, space, space, generator=generator, dtype=torch.float64)
    change = torch.cat([change, -change], dim=2)
    basis = torch.cat([still, change])
    basis = basis / basis.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    offset = torch.full((3, 1, 1, 1), 0.1, dtype=torch.float64)
    videos = []
    for _ in range(count):
        amounts = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
        amounts = 0.1 * torch.tensor(SCALES).view(1, 3, 1, 1, 1) * amounts
        amounts[:, 2, 0] = 0
        patches = torch.einsum("bzthw,zcfpq->bthwcfpq", amounts, basis) + offset
        frames = rearrange(patches, "b t h w c f p q -> b c (t f) (h p) (w q)")
        videos.append(frames[:, :, time - 1 :])
    return videos


def fitted(videos: list[Tensor], config: VAEConfig = CONFIG) -> PrincipalComponents:
    principal = PrincipalComponents(config).double()
    principal.fit(videos)
    return principal


def decode(principal: PrincipalComponents, code: Tensor) -> Tensor:
    """The transpose, times the square of the one scale, plus the mean."""
    scale = principal.components.square().sum(dim=1).mean().rsqrt()
    patches = torch.einsum("bzthw,zp->bthwp", code, principal.components) * scale**2 + principal.mean
    time, space = CONFIG.temporal_compression, CONFIG.spatial_compression
    frames = rearrange(patches, "b t h w (c f p q) -> b c (t f) (h p) (w q)", c=3, f=time, p=space, q=space)
    return frames[:, :, time - 1 :]


def test_data_of_low_rank_is_kept_whole() -> None:
    videos = low_rank_videos(3)
    principal = fitted(videos)
    for video in videos:
        code = principal(video)
        assert code.shape == (2, 3, 4, 5, 6)
        torch.testing.assert_close(decode(principal, code), video)


def test_components_are_orthogonal_sorted_and_of_one_scale() -> None:
    videos = low_rank_videos(3)
    principal = fitted(videos)
    products = principal.components @ principal.components.T
    torch.testing.assert_close(products, products[0, 0] * torch.eye(3, dtype=torch.float64))
    codes = torch.cat([principal(video) for video in videos]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(codes.mean(dim=1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    covariance = codes.cov()
    variances = covariance.diagonal()
    torch.testing.assert_close(covariance, variances.diag(), rtol=0, atol=1e-6)
    assert (variances.diff() < 0).all()
    torch.testing.assert_close(variances.mean(), torch.tensor(1.0, dtype=torch.float64))


def test_distances_are_those_of_the_pixels() -> None:
    videos = low_rank_videos(2)
    principal = fitted(videos)
    first, second = videos
    # The first frame stands for as many as a later latent frame holds.
    apart = principal._patches(first) - principal._patches(second)
    ratio = (principal(first) - principal(second)).norm(dim=1) / apart.norm(dim=-1)
    torch.testing.assert_close(ratio, ratio[0, 0, 0, 0].expand_as(ratio))


def test_the_first_frame_counts_as_still() -> None:
    principal = fitted([random_video(9, 8, 8)])
    picture = random_video(1, 4, 4, seed=1)
    still = picture.expand(-1, -1, 5, -1, -1)
    code = principal(still)
    torch.testing.assert_close(code, code[:, :, :1].expand_as(code))
    torch.testing.assert_close(principal(picture), code[:, :, :1])


def test_they_beat_any_other_directions() -> None:
    # Eckart and Young: no linear code of that size keeps more.
    video = random_video(9, 8, 8)
    principal = fitted([video])
    patches = principal._patches(video).flatten(0, 3)
    centered = patches - patches.mean(dim=0)
    lost = (decode(principal, principal(video)) - video).square().sum()
    kept = torch.linalg.svdvals(centered)
    first_frames = (decode(principal, principal(video)) - video)[:, :, 0].square().sum()
    # The patches hold the first frame twice, the clip once.
    torch.testing.assert_close(lost + first_frames, kept[3:].square().sum(), rtol=0.2, atol=0)


def test_still_data_has_no_scale_but_numbers() -> None:
    principal = fitted([torch.full((1, 3, 5, 4, 4), 0.25, dtype=torch.float64)])
    assert torch.isfinite(principal(random_video(5, 4, 4))).all()


def test_their_state_is_all_they_are() -> None:
    principal = fitted([random_video(9, 8, 8)])
    other = PrincipalComponents(CONFIG).double()
    other.load_state_dict(principal.state_dict())
    video = random_video(5, 4, 4, seed=2)
    assert torch.equal(other(video), principal(video))
    assert not any(True for _ in principal.parameters())


def test_they_are_those_of_all_patches_at_once() -> None:
    # Far from zero, where sums of squares would be the first to lose digits.
    videos = [3 + 0.01 * random_video(5, 8, 12, seed=seed) for seed in range(3)]
    principal = fitted(videos)
    patches = torch.cat([principal._patches(video).flatten(0, 3) for video in videos])
    torch.testing.assert_close(principal.mean, patches.mean(dim=0))
    directions = torch.linalg.svd(patches - patches.mean(dim=0), full_matrices=False)[2][:3]
    cosines = torch.nn.functional.cosine_similarity(principal.components, directions).abs()
    torch.testing.assert_close(cosines, torch.ones(3, dtype=torch.float64))
