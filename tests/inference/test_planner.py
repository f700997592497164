"""Plans keep to budgets, in prediction and in truth."""

import re

import pytest
import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_config, small_configs
from wan_vae import DecodeStream, UserError, VAEConfig, WanVAE
from wan_vae.benchmark.measure import measure_memory
from wan_vae.config import load_config
from wan_vae.inference import planner
from wan_vae.inference.planner import BudgetError

MEBIBYTE = 2**20
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_sizes_count(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "keeps" not in request.node.name:
        monkeypatch.setattr(planner, "_LIBRARIES", 0)


def smallest(vae: WanVAE, call: str, **size: int) -> int:
    with pytest.raises(UserError, match="too little") as error:
        vae.plan(call, **size, memory=1)
    found = re.search(r"(\d+)MiB is the smallest that works", str(error.value))
    assert found is not None, str(error.value)
    return int(found[1]) * MEBIBYTE


def least_budget(vae: WanVAE, call: str, **size: int) -> int:
    """Return the smallest budget to the byte."""
    with pytest.raises(BudgetError) as error:
        vae.plan(call, **size, memory=1)
    return error.value.smallest


@torch.no_grad()
def test_more_memory_never_costs_more_operations() -> None:
    vae = random_vae(small_config(encoder_width=16, decoder_width=16), torch.float32)
    for call in ("encode", "decode"):
        size = {"frames": 9, "height": 256, "width": 320}
        least = smallest(vae, call, **size)
        plans = [vae.plan(call, **size, memory=least + step * MEBIBYTE) for step in range(0, 200, 20)]
        assert all(plan.peak <= plan.budget for plan in plans)
        overheads = [plan.overhead for plan in plans]
        assert overheads == sorted(overheads, reverse=True)
        assert plans[0].tiling is not None
        assert (plans[-1].tiling, plans[-1].overhead) == (None, 0.0)


@pytest.mark.slow
@settings(max_examples=8)
@given(small_configs(), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 40))
@example(small_config(), 2, 24, 24, 0)  # so large that the smallest budget needs tiles on every processor
def test_a_budget_changes_no_value(config: VAEConfig, latents: int, height: int, width: int, more: int) -> None:
    vae, side = random_vae(config), config.spatial_compression
    final = random_latents(config, latents, height, width)
    video = random_video(1 + config.temporal_compression * (latents - 1), height * side, width * side)
    with torch.no_grad():
        for call, x, run in (("decode", final, vae.decode), ("encode", video, vae.encode)):
            size = {"frames": video.shape[2], "height": video.shape[3], "width": video.shape[4]}
            whole, least = vae.plan(call, **size, memory="1TiB").peak, least_budget(vae, call, **size)
            budget = least + max(0, whole - least) * more // 40
            tiled = vae.plan(call, **size, memory=budget).tiling is not None
            event(f"{call}, tiled: {tiled}")
            assert tiled or more or height * width < 24 * 24
            assert relative_difference(run(x, memory=budget), run(x)) <= 1e-10


@pytest.mark.slow
@torch.no_grad()
def test_streams_keep_to_budgets() -> None:
    vae = random_vae(small_config(decoder_width=32))
    final = random_latents(vae.config, 4, 36, 72)
    size = {"frames": 7, "height": 72, "width": 144}
    whole = vae.plan("decode", **size, memory="1GiB", streaming=True, latents_per_pass=1)
    budget = int(0.95 * whole.peak)
    tiled = vae.plan("decode", **size, memory=budget, streaming=True)
    assert (whole.tiling, tiled.tiling is None) == (None, False)
    chunks = final.split([1, 2, 1], dim=2)
    streamed = torch.cat(list(vae.decode_stream(chunks, memory=budget)), dim=2)
    assert relative_difference(streamed, vae.decode(final)) <= 1e-10

    first, second = DecodeStream(vae, memory=budget), DecodeStream(vae, memory="1GiB")
    parts = [first.push(chunk) for chunk in chunks[:2]]
    second.load_state_dict(first.state_dict())
    parts.append(second.push(chunks[2]))
    assert torch.equal(torch.cat(parts, dim=2), streamed), "what goes on stays cut as it was"


@torch.no_grad()
def test_a_plan_says_what_it_is() -> None:
    vae = random_vae(small_config(), torch.float32)
    plan = vae.plan("decode", frames=5, height=64, width=64, memory="1GiB", latents_per_pass=2)
    assert str(plan).startswith("decode: whole pictures, 2 latents a pass; at most ")
    assert str(plan).endswith(" of 1.00GiB, 0.0 % more operations than whole pictures")


@pytest.mark.parametrize("call", ["encode", "decode"])
def test_plans_are_the_same_in_inference_mode(call: str) -> None:
    vae = WanVAE.from_pretrained("nano")
    size = {"frames": 5, "height": 128, "width": 192}
    smallest_budget = smallest(vae, call, **size)
    plan = vae.plan(call, **size, memory=smallest_budget)
    with torch.inference_mode():
        assert smallest(vae, call, **size) == smallest_budget
        assert vae.plan(call, **size, memory=smallest_budget) == plan


def test_budgets_are_for_inference() -> None:
    vae = random_vae(small_config())
    video = random_video(3, 4, 4)
    with pytest.raises(UserError, match="no gradients"):
        vae.encode(video.requires_grad_(True), memory="1GiB")
    with pytest.raises(UserError, match="eval"), torch.no_grad():
        vae.train().encode(video, memory="1GiB")


def test_a_plan_needs_no_weights() -> None:
    with torch.device("meta"):
        vae = WanVAE(load_config("wan2.1")).eval().requires_grad_(False)
    plan = vae.plan("decode", frames=9, height=720, width=1280, memory="3GiB", device=CPU)
    assert plan.tiling is not None
    assert plan.overhead < 0.25


@pytest.mark.parametrize("call", ["encode", "decode"])
def test_a_call_keeps_to_its_budget(call: str) -> None:
    vae = WanVAE.from_pretrained("nano")
    size = {"frames": 5, "height": 320, "width": 448}
    video = random_video(*size.values(), dtype=torch.float32)
    with torch.inference_mode():
        latents = vae.encode(video)
        x, run = (video, vae.encode) if call == "encode" else (latents, vae.decode)
        run(x[..., :64, :64] if call == "encode" else x[..., :8, :8])
        whole = vae.plan(call, **size, memory="1TiB")
        for budget in (whole.peak, int(0.6 * whole.peak)):
            plan = vae.plan(call, **size, memory=budget)
            _, peak = measure_memory(lambda budget=budget: run(x, memory=budget), CPU)
            if peak.used is None:
                pytest.skip("this system does not tell")
            assert plan.tiling is None or budget < whole.peak
            assert 0.7 * plan.peak <= peak.used <= 1.05 * plan.peak, (
                str(plan),
                peak.used / MEBIBYTE,
            )
