import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_vae.benchmark.run import times_as_fast


def test_each_run_is_compared_with_the_one_beside_it() -> None:
    ratio = times_as_fast([1.0, 4.0, 2.0], [2.0, 4.0, 8.0])
    assert ratio.pairs == (2.0, 1.0, 4.0)
    assert (ratio.median, ratio.least, ratio.most) == (2.0, 1.0, 4.0)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.5, 2)), min_size=1, max_size=9))
def test_a_machine_that_changes_speed_changes_no_ratio(rounds: list[tuple[float, float]]) -> None:
    ours = [machine for machine, _ in rounds]
    theirs = [machine * ratio for machine, ratio in rounds]
    assert times_as_fast(ours, theirs).pairs == pytest.approx([ratio for _, ratio in rounds])


def test_runs_without_a_partner_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="argument"):
        times_as_fast([1.0, 2.0], [1.0])
