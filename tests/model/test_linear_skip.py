import pytest
import torch

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_config
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.model.halo import Halo

CONFIG = small_config(linear_skip=True)


def test_linear_skip_is_what_a_network_without_it_lacks() -> None:
    vae, plain = random_vae(CONFIG), random_vae(small_config())
    plain.load_state_dict({name: weight for name, weight in vae.state_dict().items() if "linear_skip" not in name})
    video, latents = random_video(5, 8, 12), random_latents(CONFIG, 3, 4, 6)
    for half, bare, x in ((vae.encoder, plain.encoder, video), (vae.decoder, plain.decoder, latents)):
        with torch.enable_grad():
            added = half(x, Halo()) - bare(x, Halo())
        maps = half.get_submodule("linear_skip")
        ends = [maps.get_submodule(name) for name in ("first", "later")]
        if half is vae.encoder:
            # By hand: each block of 2x2 pixels, of one frame at first and of two later.
            assert torch.count_nonzero(added[:, 3:]) == 0
            block = video[0, :, 3:5, 2:4, 6:8].reshape(-1)
            torch.testing.assert_close(added[0, :3, 2, 1, 3], ends[1](block))
            torch.testing.assert_close(added[0, :3, 0, 1, 3], ends[0](video[0, :, 0, 2:4, 6:8].reshape(-1)))
        else:
            torch.testing.assert_close(added[0, :, 3:5, 2:4, 6:8].reshape(-1), ends[1](latents[0, :, 2, 1, 3]))
            torch.testing.assert_close(added[0, :, 0, 2:4, 6:8].reshape(-1), ends[0](latents[0, :, 0, 1, 3]))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_linear_skip_in_bands_equals_that_with_gradients(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_vae.model.linear_skip._BAND_VALUES", rows * 2 * 3 * 2 * 2 * 12)
    vae, video = random_vae(CONFIG), random_video(5, 10, 12, batch=2)
    with torch.enable_grad():
        moments = vae.moments(video, Halo())
        pixels = vae.pixels(moments[:, :3], Halo())
    with torch.inference_mode():
        assert relative_difference(vae.moments(video, Halo()), moments) < 1e-12
        assert relative_difference(vae.pixels(moments[:, :3], Halo()), pixels) < 1e-12


def test_linear_skip_with_more_latents_than_values_is_refused() -> None:
    values = small_config().to_dict() | {"linear_skip": True, "latent_channels": 13}
    values |= {"latent_mean": [0.0] * 13, "latent_std": [1.0] * 13}
    with pytest.raises(UserError, match=r"latent_channels is 13; with linear_skip there can be 12"):
        VAEConfig(**values)


def test_linear_skip_has_no_place_in_diffusers(tmp_path: object) -> None:
    with pytest.raises(UserError, match="diffusers has no linear skip"):
        random_vae(CONFIG).save(f"{tmp_path}/folder", layout="diffusers")
