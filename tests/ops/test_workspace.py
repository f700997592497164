from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wan_vae.ops.workspace import Workspace, empty_cache

LIKE = torch.zeros(0)


@pytest.fixture(autouse=True)
def _nothing_is_spare() -> None:
    empty_cache()


def empty(workspace: Workspace, size: int) -> torch.Tensor:
    with torch.no_grad():
        return workspace.empty((1, size, 1, 2, 2), like=LIKE)


def test_tensors_are_stored_channels_last() -> None:
    with torch.no_grad():
        x = Workspace().empty((2, 3, 4, 5, 6), like=LIKE.to(torch.bfloat16))
    assert x.shape == (2, 3, 4, 5, 6)
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last_3d)


def test_memory_comes_back_with_the_last_view() -> None:
    workspace = Workspace()
    x = empty(workspace, 100)
    place, view = x.data_ptr(), x[:, :1]
    del x
    assert empty(workspace, 100).data_ptr() != place
    del view
    assert place in {first.data_ptr() for first in (empty(workspace, 100), empty(workspace, 100))}


def test_a_tensor_outlives_its_workspace() -> None:
    workspace = Workspace()
    x = empty(workspace, 1000).fill_(3)
    del workspace
    assert (x == 3).all()


@given(st.lists(st.integers(0, 50), max_size=20), st.data())
def test_no_two_tensors_share_memory(sizes: list[int], data: st.DataObject) -> None:
    workspace, held = Workspace(), {}
    for index, size in enumerate(sizes):
        held[index] = empty(workspace, size).fill_(index)
        if data.draw(st.booleans()):
            del held[data.draw(st.sampled_from(sorted(held)))]
    for index, x in held.items():
        assert (x == index).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.randoms())
def test_memory_given_back_in_parts_is_lent_as_one(sizes: list[int], random: Random) -> None:
    workspace = Workspace()
    held = [empty(workspace, size) for size in sizes]
    first = held[0].data_ptr()
    random.shuffle(held)
    while held:
        held.pop()
    assert empty(workspace, sum(sizes)).data_ptr() == first


def test_what_is_kept_is_what_was_needed_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_vae.ops.workspace._LEAST_REGION", 0)
    workspace = Workspace()
    for size in (16, 32, 48, 32, 16):
        x = empty(workspace, size)
        del x
    assert [region.size for region in workspace._regions[False]] == [4 * 4 * 48]


def test_what_is_in_use_is_left_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_vae.ops.workspace._LEAST_REGION", 0)
    workspace = Workspace()
    x = empty(workspace, 16).fill_(1)
    y = empty(workspace, 32).fill_(2)
    del y
    z = empty(workspace, 48).fill_(3)
    assert (x == 1).all()
    assert (z == 3).all()
    assert [region.size for region in workspace._regions[False]] == [4 * 4 * 16, 4 * 4 * 48]


def test_lasting_memory_is_written_in_any_mode() -> None:
    with torch.inference_mode():
        x = Workspace.empty_persistent((2, 3, 4, 5, 6), like=LIKE)
    assert x.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        assert (x.fill_(1) == 1).all()


def test_where_gradients_are_recorded_memory_is_not_shared() -> None:
    workspace = Workspace()
    with torch.enable_grad():
        workspace.empty((1, 2, 3, 4, 5), like=LIKE)
    assert workspace._regions == {False: [], True: []}
