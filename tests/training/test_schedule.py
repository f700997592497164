import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.runs import stage_values
from wan_vae.training import Recipe
from wan_vae.training.optim import learning_rate


def recipe_of(*stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"model": {"preset": "nano"}, "data": {"videos": "clips"}, "stages": list(stages)})


@st.composite
def stages(draw: st.DrawFn) -> dict[str, Any]:
    return stage_values(
        steps=draw(st.integers(1, 30)),
        warmup=draw(st.integers(0, 35)),
        learning_rate=draw(st.floats(1e-6, 1.0)),
        final_rate=draw(st.floats(0, 1)),
    )


@given(st.lists(stages(), min_size=1, max_size=3))
def test_each_stage_rises_then_falls(stages: list[dict[str, Any]]) -> None:
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


def test_a_stage_begins_with_its_own_schedule() -> None:
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
