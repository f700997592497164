"""A narrow Wan VAE, and its weights as other software stores them."""

import torch

from tests.helpers import random_vae, small_config
from wan_vae import WanVAE
from wan_vae.checkpoints.layouts import stored_names, stored_shape

STANDARD = {"width_multipliers": (1, 2, 4, 4), "temporal_downsample": (False, True, True), "blocks_per_level": 2}
# Qwen-Image-2.1's structure: what tells it from the others is the shape of its kernels.
SINGLE_PICTURES = {
    "width_multipliers": (1, 2, 4, 8, 8),
    "temporal_downsample": (False, True, True, True),
    "blocks_per_level": 2,
    "level_shortcuts": True,
    "image_channels": 4,
    "images_only": True,
}


def standard_vae(seed: int = 0, **changes: object) -> WanVAE:
    """A narrow VAE of Wan2.1's structure, which is recognized without metadata."""
    return random_vae(
        small_config(**STANDARD | {"encoder_width": 2, "decoder_width": 2} | changes), torch.float32, seed
    )


def native(vae: WanVAE, layout: str = "wan") -> dict[str, torch.Tensor]:
    """The weights under a layout's names, as in a file of other software: without our metadata."""
    names = stored_names(list(vae.state_dict()), vae.config, layout)
    return {
        names[name]: weight.reshape(stored_shape(tuple(weight.shape), vae.config, layout)).clone()
        for name, weight in vae.state_dict().items()
    }


def assert_same_weights(ours: WanVAE, theirs: WanVAE) -> None:
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(weight, expected[name]) for name, weight in ours.state_dict().items())
