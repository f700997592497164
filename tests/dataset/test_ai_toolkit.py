"""Buckets and names of ai-toolkit; expected values are what its own code gave."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wan_vae.dataset.ai_toolkit import crop_facts, to_toolkit_bucket, toolkit_bucket, toolkit_path, video_facts


@pytest.mark.parametrize(
    ("size", "side", "step", "bucket"),
    [
        ((1920, 1080), 512, 16, (672, 384)),
        ((720, 1280), 632, 16, (480, 832)),
        ((100, 60), 512, 16, (96, 64)),
        ((4000, 9), 256, 16, (4000, 16)),
        ((1280, 720), 704, 32, (960, 512)),
    ],
)
def test_toolkit_bucket_is_that_of_its_code(
    size: tuple[int, int], side: int, step: int, bucket: tuple[int, int]
) -> None:
    assert toolkit_bucket(*size, side, step) == bucket


def test_toolkit_path_is_that_of_its_code() -> None:
    video = crop_facts("a b.mp4", (1920, 1080), (672, 384), "wan21") | video_facts(81, 16)
    assert toolkit_path(Path("x/a b.mp4"), video) == Path("x/_latent_cache/a b_9mdSIgPmmREVXS-Ax9muGQ.safetensors")
    auto = crop_facts("a b.mp4", (1920, 1080), (672, 384), "wan22_14b") | video_facts(None, 23.976)
    assert toolkit_path(Path("x/a b.mp4"), auto) == Path("x/_latent_cache/a b_VGYS0owBAozO8mp5EsBe7w.safetensors")
    image = crop_facts("ü.png", (333, 777), (336, 784), "wan21")
    assert toolkit_path(Path("ü.png"), image) == Path("_latent_cache/ü_lfP2gvw45sLRm2voXp2O_w.safetensors")


def test_to_toolkit_bucket_scales_to_cover_and_cuts_the_center() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)
    scaled = Image.fromarray(picture).resize((64, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(to_toolkit_bucket(picture, (48, 32)), np.asarray(scaled)[:, 8:56])
