"""What is refused, and what is said then."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import random_vae, small_config
from wan_vae import UserError, WanVAE
from wan_vae.validation import check_video

CONFIG = small_config(temporal_downsample=(True, True), width_multipliers=(1, 1, 1))


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return random_vae(CONFIG)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 8, 8), r"8 frames are not 1 \+ 4k; 5 or 9 would fit"),
        ((1, 3, 0, 8, 8), r"0 frames are not 1 \+ 4k; 1 would fit"),
        ((1, 3, 9, 250, 8), "height 250 is not a multiple of 4; 248 or 252 would fit"),
        ((1, 3, 9, 8, 3), "width 3 is not a multiple of 4; 4 would fit"),
        ((3, 9, 8, 8), r"\(B, 3, T, H, W\), but this one is \(3, 9, 8, 8\)"),
        ((1, 9, 3, 8, 8), r"\(B, 3, T, H, W\), but this one is \(1, 9, 3, 8, 8\)"),
    ],
)
def test_videos_that_do_not_fit(vae: WanVAE, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vae.encode(torch.zeros(shape))


def test_integers_are_no_video(vae: WanVAE) -> None:
    with pytest.raises(UserError, match=r"\[-1, 1\], but this one is torch.uint8; divide by 127.5"):
        vae.encode(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(1, 4, 2, 3, 3), (3, 2, 3, 3), (1, 3, 0, 3, 3)])
def test_latents_that_do_not_fit(vae: WanVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"are \(B, 3, t, h, w\), but these are"):
        vae.decode(torch.zeros(shape))


@given(st.sampled_from(["frames", "height", "width"]), st.integers(0, 40))
def test_what_is_said_to_fit_fits(name: str, size: int) -> None:
    fitting = {"frames": 5, "height": 4, "width": 8}

    def check(size: int) -> None:
        shape = (1, 3, *(fitting | {name: size}).values())
        check_video(torch.empty(shape, device="meta"), CONFIG, whole=True)

    if size % 4 == (name == "frames") and size > 0:
        check(size)
    else:
        with pytest.raises(UserError) as refused:
            check(size)
        advice = re.findall(r"\d+(?= or| would)", str(refused.value))
        assert advice
        for better in advice:
            check(int(better))


def test_chunks_have_any_number_of_frames() -> None:
    for frames in range(6):
        check_video(torch.empty(1, 3, frames, 4, 8), CONFIG, whole=False)
