"""Two models that decode one latent: colors and alpha."""

import pytest
import torch

from tests.helpers import random_latents, random_vae, small_config
from wan_vae import UserError
from wan_vae.alpha_pair import AlphaPair
from wan_vae.inference.planner import BudgetError

CONFIG = small_config()


@pytest.fixture(scope="module")
def pair() -> AlphaPair:
    return AlphaPair(random_vae(CONFIG, seed=0), random_vae(CONFIG, seed=1))


def test_decode_gives_the_colors_of_one_and_the_mean_of_the_other(pair: AlphaPair) -> None:
    latents = random_latents(CONFIG, 3, 4, 6, batch=2)
    video = pair.decode(latents)
    torch.testing.assert_close(video[:, :3], pair.color.decode(latents), rtol=0, atol=0)
    torch.testing.assert_close(video[:, 3], pair.alpha.decode(latents).mean(dim=1), rtol=0, atol=0)
    assert video.shape == (2, 4, 5, 8, 12)


@pytest.mark.parametrize("memory", [None, "1GiB"])
def test_decode_stream_gives_what_decode_gives(pair: AlphaPair, memory: str | None) -> None:
    latents = random_latents(CONFIG, 4, 4, 6)
    parts = list(pair.decode_stream(latents.split([1, 2, 1], dim=2), memory=memory))
    torch.testing.assert_close(torch.cat(parts, dim=2), pair.decode(latents, memory=memory), rtol=0, atol=1e-12)


def test_decode_stream_of_no_chunks_is_refused(pair: AlphaPair) -> None:
    with pytest.raises(UserError, match=r"chunks is 3; it must be an iterable"):
        list(pair.decode_stream(3))  # type: ignore[arg-type]


def test_raw_latents_are_those_of_both(pair: AlphaPair) -> None:
    latents = random_latents(CONFIG, 2, 4, 4)
    raw = pair.color.denormalize(latents)
    torch.testing.assert_close(pair.decode(raw, raw=True), pair.decode(latents), rtol=0, atol=1e-12)


def test_plan_of_a_stream_is_of_half_the_budget_and_of_a_clip_of_what_the_result_leaves(pair: AlphaPair) -> None:
    size = {"frames": 5, "height": 64, "width": 64}
    half = pair.color.plan("decode", memory="512MiB", streaming=True, **size)
    assert pair.plan("decode", memory="1GiB", streaming=True, **size) == half
    result = 4 * 5 * 64 * 64 * pair.color.decoder_dtype.itemsize
    assert pair.plan("decode", memory="1GiB", **size) == pair.color.plan("decode", memory=2**30 - result, **size)
    with pytest.raises(UserError, match="decodes only; plan for the model that encodes"):
        pair.plan("encode", memory="1GiB", **size)


def test_latents_per_pass_are_those_of_both(pair: AlphaPair) -> None:
    latents = random_latents(CONFIG, 3, 4, 4)
    expected = pair.decode(latents)
    torch.testing.assert_close(pair.decode(latents, latents_per_pass=1), expected, rtol=0, atol=1e-12)
    streamed = torch.cat(list(pair.decode_stream([latents], latents_per_pass=2)), dim=2)
    torch.testing.assert_close(streamed, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("call", ["decode", "decode_stream", "plan"])
def test_budget_that_is_too_small_names_what_works_for_both(pair: AlphaPair, call: str) -> None:
    latents = random_latents(CONFIG, 3, 24, 24)

    def run(memory: int) -> object:
        if call == "plan":
            return pair.plan("decode", frames=5, height=48, width=48, memory=memory)
        if call == "decode":
            return pair.decode(latents, memory=memory)
        return list(pair.decode_stream([latents], memory=memory))

    with pytest.raises(BudgetError, match=r"^1B of memory is too little .* is the smallest that works") as error:
        run(1)
    run(error.value.smallest)
    with pytest.raises(BudgetError):
        run(error.value.smallest * 9 // 10)


def test_models_that_do_not_belong_together_are_refused() -> None:
    color = random_vae(CONFIG)
    with pytest.raises(UserError, match=r"latent_std is .* and .*; pass the two that were published together"):
        AlphaPair(color, random_vae(small_config(latent_std=(1.0, 1.0, 1.0))))
    with pytest.raises(UserError, match="decodes to RGBA itself"):
        AlphaPair(random_vae(small_config(image_channels=4)), random_vae(small_config(image_channels=4)))
    with pytest.raises(UserError, match=r"alpha is 'other.safetensors'; it must be a WanVAE"):
        AlphaPair(color, "other.safetensors")  # type: ignore[arg-type]
