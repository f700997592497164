import torch
from hypothesis import given
from hypothesis import strategies as st

from wan_vae.ops.workspace import Workspace

LIKE = torch.zeros(0)


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


def test_what_is_kept_is_what_was_needed_at_one_time() -> None:
    workspace = Workspace()
    for size in (10, 20, 30, 20, 10):
        x = empty(workspace, size)
        del x
    assert [len(block) for block in workspace._free] == [4 * 4 * 30]


def test_where_gradients_are_recorded_memory_is_not_shared() -> None:
    workspace = Workspace()
    with torch.enable_grad():
        workspace.empty((1, 2, 3, 4, 5), like=LIKE)
    assert not workspace._free
