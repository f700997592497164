import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_vae, small_config
from tests.training.runs import stage_values
from wan_vae import WanVAE
from wan_vae.training import Recipe
from wan_vae.training.optim import EMA, learning_rate, make_optimizer, orthogonalized


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 99))
def test_orthogonalized_keeps_singular_vectors_and_brings_values_near_one(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, values, right = torch.linalg.svd(
        torch.randn(rows, columns, generator=generator, dtype=torch.float64), full_matrices=False
    )
    matrix = left @ torch.diag(values.clamp(min=0.1)) @ right
    found = left.T @ orthogonalized(matrix) @ right.T
    assert torch.allclose(found, torch.diag(found.diagonal()), atol=1e-6)
    assert found.diagonal().min() > 0.5
    assert found.diagonal().max() < 1.3


def test_muon_trains_inner_convolutions_and_adamw_all_other_weights() -> None:
    vae = WanVAE(small_config())
    adamw, muon = make_optimizer(vae, "muon", (0.9, 0.95), 0.0).param_groups
    names = {id(weight): name for name, weight in vae.named_parameters()}
    by_muon = {names[id(weight)] for weight in muon["params"]}
    by_adamw = {names[id(weight)] for weight in adamw["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw
    assert all(name.endswith("weight") for name in by_muon)
    assert {"encoder.levels.0.blocks.0.conv1.weight", "decoder.levels.0.blocks.0.conv1.weight"} <= by_muon
    assert {"encoder.conv_in.weight", "decoder.head.conv.weight", "quant_conv.weight"} <= by_adamw


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimizer_reduces_the_loss_and_keeps_frozen_weights(kind: str) -> None:
    torch.manual_seed(0)
    vae = WanVAE(small_config())
    vae.encoder.requires_grad_(False)
    frozen = {name: weight.clone() for name, weight in vae.encoder.named_parameters()}
    optimizer = make_optimizer(vae, kind, (0.9, 0.95), 0.01)
    video = torch.rand(1, 3, 3, 16, 16) * 2 - 1
    errors = []
    for _ in range(30):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3
        reconstruction, _ = vae(video)
        error = (reconstruction - video).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.9 * errors[0]
    assert all(torch.equal(weight, frozen[name]) for name, weight in vae.encoder.named_parameters())


def test_muon_steps_are_those_of_its_formula() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(4, 6, 3)
    rate, decay, weight, momentum = 1e-2, 0.1, layer.weight.detach().clone(), torch.zeros(6, 108)
    optimizer = make_optimizer(layer, "muon", (0.9, 0.95), decay)
    for group in optimizer.param_groups:
        group["lr"] = rate
    for _ in range(2):
        gradient = torch.randn_like(weight)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        # Nesterov's momentum, then an update of the RMS that AdamW's has, 0.2.
        momentum = 0.95 * momentum + 0.05 * gradient.flatten(1)
        update = orthogonalized(0.05 * gradient.flatten(1) + 0.95 * momentum)
        weight = (1 - rate * decay) * weight - rate * 0.2 * 108**0.5 * update.view_as(weight)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-5, atol=1e-7)


def test_muon_resumed_from_its_state_continues_identically() -> None:
    results = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        layer = torch.nn.Conv3d(4, 6, 3)
        optimizer = make_optimizer(layer, "muon", (0.9, 0.95), 0.0)
        for step in range(6):
            if interrupted and step == 3:
                state = optimizer.state_dict()
                optimizer = make_optimizer(layer, "muon", (0.9, 0.95), 0.0)
                optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2
            optimizer.zero_grad()
            layer(torch.full((1, 4, 3, 5, 5), 1.0 + step)).square().mean().backward()
            optimizer.step()
        results.append(layer.weight.detach().clone())
    assert torch.equal(*results)


def recipe_of(*stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"model": {"preset": "nano"}, "data": {"videos": "clips"}, "stages": list(stages)})


@st.composite
def stages(draw: st.DrawFn) -> dict[str, Any]:
    steps = draw(st.integers(1, 30))
    return stage_values(
        steps=steps,
        warmup=draw(st.integers(0, steps)),
        learning_rate=draw(st.floats(1e-6, 1.0)),
        final_rate=draw(st.floats(0, 1)),
    )


@given(st.lists(stages(), min_size=1, max_size=3))
def test_learning_rate_rises_then_falls_in_each_stage(stages: list[dict[str, Any]]) -> None:
    recipe = recipe_of(*stages)
    rates = iter([learning_rate(recipe, step) for step in range(recipe.steps)])
    for stage in recipe.stages:
        of_stage = [next(rates) for _ in range(stage.steps)]
        rising, falling = of_stage[: stage.warmup], of_stage[stage.warmup :]
        top, end = stage.learning_rate, stage.learning_rate * stage.final_rate
        assert rising == pytest.approx([top * (step + 1) / stage.warmup for step in range(len(rising))])
        if falling:
            assert falling[0] == pytest.approx(top)
            assert all(first >= then for first, then in pairwise(falling))
            # One step before the end of the cosine.
            assert falling[-1] >= end - 1e-12 * top
            assert falling[-1] - end <= top * (math.pi / (2 * len(falling))) ** 2 + 1e-12 * top


def test_learning_rate_restarts_with_each_stage() -> None:
    first = stage_values(steps=4, learning_rate=0.1, final_rate=0.5)
    second = stage_values(steps=5, learning_rate=0.01, warmup=2)
    recipe = recipe_of(first, second)
    rates = [learning_rate(recipe, step) for step in range(9)]
    assert rates[0] == 0.1
    assert rates[2] == pytest.approx(0.075)
    assert rates[4:7] == pytest.approx([0.005, 0.01, 0.01])
    assert rates[3] > 0.05 > rates[4]
    with pytest.raises(IndexError):
        learning_rate(recipe, 9)


CONFIG = small_config(width_multipliers=(1,), temporal_downsample=(), block="resnet")


@pytest.fixture(scope="module")
def initial() -> WanVAE:
    return random_vae(CONFIG, seed=1)


@pytest.fixture(scope="module")
def current() -> WanVAE:
    return random_vae(CONFIG, seed=2)


@settings(max_examples=6)
@given(decay=st.floats(0, 1), steps=st.integers(0, 2000))
def test_ema_update_follows_the_formula(initial: WanVAE, current: WanVAE, decay: float, steps: int) -> None:
    average = EMA(initial, decay)
    average.update(current, steps)
    kept = min(decay, (1 + steps) / (10 + steps))
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            expected = kept * initial.state_dict()[name] + (1 - kept) * current.state_dict()[name]
            torch.testing.assert_close(value, expected)


def test_ema_update_has_a_lower_decay_at_first(initial: WanVAE, current: WanVAE) -> None:
    name = "quant_conv.weight"
    moved = []
    for steps in (0, 10, 100, 10**6):
        average = EMA(initial, 0.99)
        average.update(current, steps)
        whole = (current.state_dict()[name] - initial.state_dict()[name]).norm()
        moved.append(((average.model.state_dict()[name] - initial.state_dict()[name]).norm() / whole).item())
    assert moved == pytest.approx([0.9, 9 / 20, 9 / 110, 0.01])


def test_ema_of_constant_weights_stays_equal_to_the_bit() -> None:
    vae = random_vae(CONFIG, torch.float32)
    average = EMA(vae, 0.9)
    for steps in range(20):
        average.update(vae, steps)
    assert all(torch.equal(value, vae.state_dict()[name]) for name, value in average.model.state_dict().items())


def test_ema_model_is_in_eval_mode_without_gradients() -> None:
    vae = random_vae(CONFIG).train().requires_grad_(True)
    average = EMA(vae, 0.9)
    assert not any(module.training for module in average.model.modules())
    assert not any(weight.requires_grad for weight in average.model.parameters())
    counters = [name for name in vae.state_dict() if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        vae.state_dict()[name].fill_(7)
    average.update(vae, 0)
    assert all(average.model.state_dict()[name] == 7 for name in counters)
    assert vae.training
