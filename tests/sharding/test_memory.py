"""Shards keep to budgets of memory, and to the same plan in all processes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh

from tests.helpers import (
    random_latents,
    random_vae,
    random_video,
    relative_difference,
    small_config,
    small_configs,
)
from tests.sharding.workers import Workers
from wan_vae import UserError, VAEConfig
from wan_vae.inference import dry_run, pass_runner, planner
from wan_vae.inference.budget import parse_bytes
from wan_vae.inference.planner import BudgetError, Plan
from wan_vae.inference.tiling import TiledHalo, Tiling
from wan_vae.sharding.process_group import ProcessGroup, min_budget
from wan_vae.sharding.sharded_vae import ShardedVAE

CPU = torch.device("cpu")


@contextmanager
def small_sizes_count() -> Iterator[None]:
    """Leave out what libraries take, which is more than all that small models do, and tell the smallest in bytes."""
    saved, planner._LIBRARIES, planner._MEBIBYTE = (planner._LIBRARIES, planner._MEBIBYTE), 0, 1
    try:
        yield
    finally:
        planner._LIBRARIES, planner._MEBIBYTE = saved


def sharded(group: dist.ProcessGroup, config: VAEConfig, *, gather: bool = True) -> ShardedVAE:
    return random_vae(config).shard(DeviceMesh.from_group(group, "cpu"), gather=gather)


def given_to(call: str, config: VAEConfig, size: tuple[int, int, int]) -> torch.Tensor:
    """Return random frames, or the latents of as many, of so many latents in time, height and width."""
    if call == "decode":
        return random_latents(config, *size)
    side = config.spatial_compression
    return random_video(1 + config.temporal_compression * (size[0] - 1), size[1] * side, size[2] * side)


def coded(
    group: dist.ProcessGroup, config: VAEConfig, call: str, size: tuple[int, int, int], shares: list[float]
) -> tuple[np.ndarray, str, Plan]:
    """Return the result, what was said of a budget of nothing, and the plan.

    `shares` say, by process, what a budget is of the way from the least one to that of whole pictures.
    """
    vae, x = sharded(group, config), given_to(call, config, size)
    options = dict(zip(("frames", "height", "width"), given_to("encode", config, size).shape[2:], strict=True))
    with small_sizes_count():
        whole = vae.plan(call, **options, memory="1TiB").peak
        try:
            vae.plan(call, **options, memory=1)
        except BudgetError as error:
            said, exact = str(error), error.smallest
        smallest = re.search(r"too little to .* this clip; (\d+)MiB is the smallest that works\.$", said)
        assert smallest is not None, said
        least = int(smallest[1])
        assert exact == least
        budget = least + int(max(0, whole - least) * shares[group.rank()])
        return getattr(vae, call)(x, memory=budget).numpy(), said, vae.plan(call, **options, memory=budget)


@pytest.mark.slow
@settings(max_examples=5)
@given(
    st.data(),
    small_configs(),
    st.sampled_from(["encode", "decode"]),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(3, 5), st.integers(3, 5)),
)
def test_sharded_calls_with_budgets_equal_one_device(
    workers: Workers, data: st.DataObject, config: VAEConfig, call: str, count: int, size: tuple[int, int, int]
) -> None:
    shares = data.draw(st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=count, max_size=count))
    expected = getattr(random_vae(config), call)(given_to(call, config, size))
    outcomes = workers.run(count, coded, config, call, size, shares)
    for result, said, plan in outcomes:
        assert (said, plan) == outcomes[0][1:]
        assert plan.peak <= plan.budget
        assert relative_difference(torch.from_numpy(result), expected) <= 1e-10
    event(f"tiles: {plan.tiling is not None}")


def plans(group: dist.ProcessGroup, config: VAEConfig, budgets: list[int]) -> tuple[Plan, torch.Tensor]:
    vae, memory = sharded(group, config), budgets[group.rank()]
    with small_sizes_count():
        plan = vae.plan("decode", frames=7, height=48, width=96, memory=memory, latents_per_pass=1)
        return plan, vae.decode(random_latents(config, 4, 24, 48), memory=memory, latents_per_pass=1)


@pytest.mark.slow
def test_the_min_budget_is_everyones(workers: Workers) -> None:
    config = small_config(decoder_width=32)
    whole, expected = workers.run(2, plans, config, [2**40] * 2)[0]
    least = int(0.9 * whole.peak)
    outcomes = workers.run(2, plans, config, [2**40, least])
    plan = outcomes[0][0]
    assert (whole.tiling, plan.budget) == (None, least)
    assert plan.tiling is not None
    assert plan.peak <= least
    for each, video in outcomes:
        assert each == plan
        assert relative_difference(video, expected) <= 1e-10


@contextmanager
def fixed_plan(tiling: Tiling | None) -> Iterator[None]:
    """Have every plan of this process be this one; without a tiling there are none."""

    def choose(request: planner.PlanRequest, budget: int) -> Plan:
        assert tiling is not None, "another process plans"
        return Plan(request.direction, budget, 1, 0.0, 2, tiling, len(request.stages))

    saved, dry_run.choose = dry_run.choose, choose
    try:
        yield
    finally:
        dry_run.choose = saved


def streamed(group: dist.ProcessGroup, config: VAEConfig, call: str, tiling: Tiling) -> torch.Tensor:
    chunks = given_to(call, config, (4, 3, 5)).split(3, dim=2)
    with (
        fixed_plan(tiling if group.rank() == 0 else None),
        mock.patch.object(pass_runner, "TiledHalo", side_effect=TiledHalo) as tiled,
    ):
        parts = list(getattr(sharded(group, config), f"{call}_stream")(chunks, memory="1GiB"))
    assert tiled.call_args.args[0] == tiling
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("call", ["encode", "decode"])
def test_streams_follow_the_plan_of_rank_0(workers: Workers, call: str) -> None:
    config = small_config()
    expected = getattr(random_vae(config), call)(given_to(call, config, (4, 3, 5)))
    for result in workers.run(3, streamed, config, call, Tiling(2, 2, 0, 2)):
        assert relative_difference(result, expected) <= 1e-10


def peak_of_plan(group: dist.ProcessGroup, config: VAEConfig, gather: bool) -> int:
    with small_sizes_count():
        return sharded(group, config, gather=gather).plan("decode", frames=41, height=32, width=64, memory=2**40).peak


def test_plan_with_gather_counts_the_whole_result(workers: Workers) -> None:
    config = small_config(output_upscale=2)
    gathered, left = workers.run(2, peak_of_plan, config, True)[0], workers.run(2, peak_of_plan, config, False)[0]
    # The other's part, and the whole that both are put together to; frames are in float64.
    assert gathered - left >= 3 * 41 * 64 * 128 * 8


def message_of(group: dist.ProcessGroup, mistake: str) -> str:
    first = group.rank() == 0
    memory = {"no size": "much" if first else "1GiB", "in one": None if first else "1GiB", "too little": 1}[mistake]
    config = small_config()
    try:
        sharded(group, config).decode(random_latents(config, 1, 2, 3), memory=memory)
    except UserError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("no size", "The memory is 'much'; write bytes, a number with a unit such as 4GiB, or auto."),
        ("in one", "in torch.float64 with a budget of memory, any latents_per_pass and gather=True; all must"),
        ("too little", "1B of memory is too little to decode this clip;"),
    ],
)
def test_budget_mistakes_raise_on_every_rank(workers: Workers, mistake: str, message: str) -> None:
    told = workers.run(2, message_of, mistake)
    assert message in told[0]
    assert all(one == told[0] or mistake == "in one" for one in told)
    assert "no error" not in told


def free_memory(group: dist.ProcessGroup) -> int:
    return min_budget("auto", CPU, ProcessGroup(range(group.size()), group))


def test_min_budget_auto_on_one_machine_divides_what_is_free(workers: Workers) -> None:
    shared = workers.run(4, free_memory)
    assert len(set(shared)) == 1
    assert shared[0] <= 0.3 * parse_bytes("auto", CPU)
