"""Streams refuse what changed in midway, and a refused push takes nothing."""

import pytest
import torch

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_config
from wan_vae import DecodeStream, EncodeStream, UserError


def test_push_with_a_refused_budget_takes_nothing() -> None:
    vae = random_vae(small_config())
    with pytest.raises(UserError, match="too little to encode"), EncodeStream(vae, memory=1) as stream:
        stream.push(random_video(1, 4, 4))
    stream = EncodeStream(vae, memory=1)
    for size in ((4, 4), (8, 8)):  # neither size is pinned by the refusal
        with pytest.raises(UserError, match="too little to encode"):
            stream.push(random_video(1, *size))
    assert stream.position == 0
    assert stream.state_dict().keys() == {"stream", "weights"}


def test_push_of_an_empty_first_chunk_does_not_pin_the_size() -> None:
    vae = random_vae(small_config())
    video = random_video(3, 8, 8)
    with EncodeStream(vae) as stream:
        assert stream.push(random_video(1, 4, 4)[:, :, :0]) is None
        latents = stream.push(video)
    assert latents is not None
    assert relative_difference(latents, vae.encode(video)) <= 1e-10


def test_push_after_autocast_was_switched_raises_one_sentence() -> None:
    vae = random_vae(small_config(), torch.float32)
    latents = random_latents(vae.config, 3, 2, 2, dtype=torch.float32)
    stream = DecodeStream(vae)
    stream.push(latents[:, :, :1])
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(UserError, match="finish it before changing"):
        stream.push(latents[:, :, 1:2])
    assert stream.position == 1
    assert stream.push(latents[:, :, 1:2]) is not None


def test_push_after_the_model_changed_its_dtype_raises_one_sentence() -> None:
    vae = random_vae(small_config(), torch.float32)
    video = random_video(3, 4, 4, dtype=torch.float32)
    stream = EncodeStream(vae)
    stream.push(video[:, :, :1])
    vae.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"began with .*torch.float32.* and now they are .*torch.bfloat16"):
        stream.push(video[:, :, 1:])


def test_push_after_the_mode_was_switched_raises_one_sentence() -> None:
    vae = random_vae(small_config())
    stream = DecodeStream(vae)
    stream.push(random_latents(vae.config, 1, 2, 2))
    vae.train()
    with pytest.raises(UserError, match="finish it before changing"):
        stream.push(random_latents(vae.config, 1, 2, 2))


def test_push_in_training_mode_with_batch_norm_raises_one_sentence() -> None:
    vae = random_vae(small_config(block="resnet")).train()
    with pytest.raises(UserError, match="batch norm is in training mode"):
        EncodeStream(vae).push(random_video(1, 4, 4))


@pytest.mark.parametrize("latents", [0, -1, 1.5, True])
def test_encode_stream_with_impossible_latents_per_pass_raises_at_once(latents: int) -> None:
    vae = random_vae(small_config())
    with pytest.raises(UserError, match=f"latents_per_pass is {latents}"):
        vae.encode_stream([], latents_per_pass=latents)
    with pytest.raises(UserError, match=f"latents_per_pass is {latents}"):
        vae.decode(random_latents(vae.config, 2, 2, 2), latents_per_pass=latents)
