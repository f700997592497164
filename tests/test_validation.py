"""Refused videos, latents and dtypes, and the messages."""

import logging
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import random_vae, small_config
from wan_vae import UserError, WanVAE, validation
from wan_vae.validation import check_latents, check_video, choose_dtypes, parse_dtype

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
def test_encode_of_a_video_that_does_not_fit_gets_a_sentence(vae: WanVAE, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vae.encode(torch.zeros(shape))


def test_encode_of_integers_gets_a_sentence(vae: WanVAE) -> None:
    with pytest.raises(UserError, match=r"\[-1, 1\], but this one is torch.uint8; divide by 127.5"):
        vae.encode(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(1, 4, 2, 3, 3), (3, 2, 3, 3), (1, 3, 0, 3, 3)])
def test_decode_of_latents_that_do_not_fit_gets_a_sentence(vae: WanVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"are \(B, 3, t, h, w\), but these are"):
        vae.decode(torch.zeros(shape))


@given(st.sampled_from(["frames", "height", "width"]), st.integers(0, 40))
def test_check_video_advises_sizes_that_fit(name: str, size: int) -> None:
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


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.zeros((1, 3, 1, 8, 8), dtype=np.float32), r"a numpy array; pass torch\.from_numpy\(\.\.\.\)\.$"),
        ([[0.0]], r"a list; pass a torch\.Tensor\.$"),
        (None, "a NoneType; pass"),
    ],
)
def test_encode_and_decode_of_no_tensor_get_a_sentence(vae: WanVAE, value: object, kind: str) -> None:
    with pytest.raises(UserError, match=f"The video is {kind}"):
        vae.encode(value)
    with pytest.raises(UserError, match=f"The latents are {kind}"):
        vae.decode(value)
    with pytest.raises(UserError, match=f"The video is {kind}"):
        list(vae.encode_stream([value]))
    with pytest.raises(UserError, match=f"The latents are {kind}"):
        list(vae.decode_stream([value]))


@pytest.mark.parametrize("whole", [True, False])
def test_check_of_an_empty_batch_gets_a_sentence(whole: bool) -> None:
    with pytest.raises(UserError, match=r"batch of videos is empty: it is \(0, 3, 5, 8, 8\); B must be 1 or more"):
        check_video(torch.zeros(0, 3, 5, 8, 8), CONFIG, whole=whole)
    with pytest.raises(UserError, match=r"batch of latents is empty: it is \(0, 3, 2, 2, 2\); B must be 1 or more"):
        check_latents(torch.zeros(0, 3, 2, 2, 2), CONFIG, whole=whole)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[torch.Tensor], bool]:
    """Check a video in a process that has not warned yet, and return true if it warns."""

    def check(video: torch.Tensor) -> bool:
        validation._warn_of_levels.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "wan_vae"):
            check_video(video, CONFIG, whole=False)
            check_video(video, CONFIG, whole=False)
        assert len(caplog.messages) <= 1
        return "values in [0, 255], but they must be in [-1, 1]" in caplog.text

    return check


def test_check_video_of_levels_up_to_255_warns_once(warned: Callable[[torch.Tensor], bool]) -> None:
    noise = torch.rand(1, 3, 5, 24, 40, generator=torch.Generator().manual_seed(0))
    assert warned(noise * 255)
    assert warned(noise.to(torch.bfloat16) * 2)
    assert warned((noise * 255).transpose(3, 4).expand(2, -1, -1, -1, -1))
    assert not warned(noise)
    assert not warned(noise * 2 - 1)
    assert not warned(noise * 3 - 1.2)  # overshoot
    assert not warned(noise[:, :, :0])
    assert not warned(torch.full((1, 3, 1, 8, 8), torch.nan))
    assert not warned((noise * 255).to("meta"))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace. is deprecated")
def test_check_video_of_levels_does_not_read_values_where_they_are_traced(
    warned: Callable[[torch.Tensor], bool],
) -> None:
    video = torch.full((2, 3, 1, 8, 8), 255.0)

    def checked(video: torch.Tensor) -> torch.Tensor:
        check_video(video, CONFIG, whole=True)
        return video + 1

    assert torch.equal(torch.compile(checked, fullgraph=True, backend="eager")(video), video + 1)
    assert torch.equal(torch.func.vmap(lambda x: checked(x[None])[0])(video), video + 1)
    assert torch.equal(torch.jit.trace(checked, video)(video), video + 1)


@pytest.mark.parametrize(
    ("capability", "hip", "dtype"),
    [((7, 5), None, torch.float32), ((8, 0), None, torch.bfloat16), ((7, 5), "6.4", torch.bfloat16)],
)
def test_auto_on_a_gpu_is_bfloat16_where_convolutions_have_it(
    capability: tuple[int, int], hip: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_dtypes("auto", torch.device("cuda")) == (dtype, dtype)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16),
        ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("torch.float16", torch.float16),
        (torch.float64, torch.float64), (torch.bfloat16, torch.bfloat16), (None, None),
    ],
)  # fmt: skip
def test_parse_dtype_takes_names_and_dtypes(text: str | torch.dtype | None, dtype: torch.dtype | None) -> None:
    assert parse_dtype(text) is dtype


@pytest.mark.parametrize("bad", ["int8", "", "FP32", "float8_e4m3fn", torch.int8, torch.complex64])
def test_parse_dtype_of_another_dtype_gets_a_sentence(bad: str | torch.dtype) -> None:
    with pytest.raises(UserError, match=r"^dtype is '.*'; it must be float32, bfloat16, float16, float64 or a torch"):
        parse_dtype(bad)


def test_check_video_of_a_chunk_takes_any_number_of_frames() -> None:
    for frames in range(6):
        check_video(torch.empty(1, 3, frames, 4, 8), CONFIG, whole=False)
