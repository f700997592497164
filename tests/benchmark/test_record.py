import json

import pytest

from tests.benchmark.records import make_record
from wan_vae.benchmark.implementations import OURS, THEIRS


def test_shares_of_what_the_machine_can_do() -> None:
    found = {(each["dtype"], each["implementation"]): each for each in make_record()["results"]}
    ours = found["fp32", OURS]
    assert (ours["seconds"], ours["median_seconds"]) == ([1.0, 2.0, 1.0], 1.0)
    assert ours["flops_per_second"] == 4e9
    assert ours["share_of_matmul"] == 0.5
    assert ours["share_of_copy"] == pytest.approx(4 * 100 / 1.0 / 1000)
    theirs = found["bf16", THEIRS]
    assert theirs["share_of_matmul"] == 8e9 / 0.5 / 16e9
    assert theirs["share_of_copy"] == pytest.approx(2 * 200 / 0.5 / 1000)


def test_ratios_are_of_runs_in_the_same_round() -> None:
    found = {(each["dtype"], each["against"]): each["pairs"] for each in make_record()["ratios"]}
    assert found == {
        ("fp32", "fp32"): (2.0, 1.0, 3.0),
        ("bf16", "bf16"): (2.0, 1.0, 1.25),
        ("bf16", "fp32"): (4.0, 4.0, 7.5),
    }
    assert make_record(alone=True)["ratios"] == []


def test_it_is_json() -> None:
    json.dumps(make_record(), allow_nan=False)
