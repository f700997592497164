import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_vae, small_config
from wan_vae import WanVAE
from wan_vae.training.optim import EMA

CONFIG = small_config(width_multipliers=(1,), temporal_downsample=(), block="resnet")


@pytest.fixture(scope="module")
def begun() -> WanVAE:
    return random_vae(CONFIG, seed=1)


@pytest.fixture(scope="module")
def followed() -> WanVAE:
    return random_vae(CONFIG, seed=2)


@settings(max_examples=6)
@given(decay=st.floats(0, 1), steps=st.integers(0, 2000))
def test_the_formula(begun: WanVAE, followed: WanVAE, decay: float, steps: int) -> None:
    average = EMA(begun, decay)
    average.follow(followed, steps)
    kept = min(decay, (1 + steps) / (10 + steps))
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            expected = kept * begun.state_dict()[name] + (1 - kept) * followed.state_dict()[name]
            torch.testing.assert_close(value, expected)


def test_it_follows_faster_at_first(begun: WanVAE, followed: WanVAE) -> None:
    name = "quant_conv.weight"
    moved = []
    for steps in (0, 10, 100, 10**6):
        average = EMA(begun, 0.99)
        average.follow(followed, steps)
        whole = (followed.state_dict()[name] - begun.state_dict()[name]).norm()
        moved.append(((average.model.state_dict()[name] - begun.state_dict()[name]).norm() / whole).item())
    assert moved == pytest.approx([0.9, 9 / 20, 9 / 110, 0.01])


def test_what_stands_still_stays_to_the_bit() -> None:
    vae = random_vae(CONFIG, torch.float32)
    average = EMA(vae, 0.9)
    for steps in range(20):
        average.follow(vae, steps)
    assert all(torch.equal(value, vae.state_dict()[name]) for name, value in average.model.state_dict().items())


def test_it_is_a_copy_to_look_at() -> None:
    vae = random_vae(CONFIG).train().requires_grad_(True)
    average = EMA(vae, 0.9)
    assert not any(module.training for module in average.model.modules())
    assert not any(weight.requires_grad for weight in average.model.parameters())
    counters = [name for name in vae.state_dict() if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        vae.state_dict()[name].fill_(7)
    average.follow(vae, 0)
    assert all(average.model.state_dict()[name] == 7 for name in counters)
    assert vae.training
