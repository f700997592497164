"""Memory passes from one workspace to the next, and nothing that is in use ever does."""

import mmap
import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import random_latents, random_vae, random_video, small_config
from wan_vae import DecodeStream, EncodeStream, empty_cache
from wan_vae.ops import workspace as spare_memory
from wan_vae.ops.workspace import Region, Workspace

LIKE = torch.zeros(0)

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_FREE"), reason="this system takes no memory on demand")


@pytest.fixture(autouse=True)
def _nothing_is_spare() -> None:
    empty_cache()


def empty(workspace: Workspace, size: int, *, kept: bool = False) -> torch.Tensor:
    with torch.no_grad():
        return workspace.empty((1, size, 1, 2, 2), like=LIKE, kept=kept)


def spare_sizes() -> list[int]:
    return [region.size for spare in spare_memory._spare.values() for region in spare]


@pytest.mark.parametrize("kept", [False, True])
def test_the_next_workspace_gets_the_same_memory(kept: bool) -> None:
    workspace = Workspace()
    place = empty(workspace, 100, kept=kept).data_ptr()
    del workspace
    assert empty(Workspace(), 100, kept=not kept).data_ptr() != place
    assert empty(Workspace(), 100, kept=kept).data_ptr() == place


def test_a_workspace_at_rest_lends_again() -> None:
    workspace = Workspace()
    place = empty(workspace, 100).data_ptr()
    workspace.rest()
    other = empty(Workspace(), 100).fill_(1)
    assert other.data_ptr() == place
    assert empty(workspace, 100).fill_(2).data_ptr() != place
    assert (other == 1).all()


def test_what_is_in_use_is_nobody_elses() -> None:
    workspace = Workspace()
    x = empty(workspace, 100).fill_(3)
    workspace.rest()
    del workspace
    assert spare_sizes() == []
    y = empty(Workspace(), 100).fill_(4)
    assert (y == 4).all()
    assert (x == 3).all()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60), st.booleans(), st.booleans()), max_size=30))
def test_no_two_tensors_share_memory(steps: list[tuple[int, int, bool, bool]]) -> None:
    workspaces, held = [Workspace() for _ in range(3)], {}
    for index, (which, size, kept, ends) in enumerate(steps):
        held[index] = empty(workspaces[which], size, kept=kept).fill_(index)
        if ends:
            del held[min(held)]
            workspaces[which].rest()
            workspaces[(which + 1) % 3] = Workspace()
    for index, x in held.items():
        assert (x == index).all()


def test_memory_can_be_given_back() -> None:
    workspace = Workspace()
    empty(workspace, 100)
    workspace.rest()
    assert spare_sizes() != []
    empty_cache()
    assert spare_sizes() == []


def test_not_more_is_spare_than_is_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_memory, "_MOST", 1000)
    regions = [Region(size) for size in (600, 500, 300)]
    assert all(region.address for region in regions)
    spare_memory.leave(regions, kept=False)
    assert (spare_sizes(), [region.size for region in regions]) == ([600, 300], [500])


def test_what_is_too_small_makes_place() -> None:
    regions = [Region(100)]
    assert regions[0].address
    spare_memory.leave(regions, kept=False)
    assert spare_memory.take(200, kept=False) is None
    assert spare_sizes() == []


def test_what_never_was_written_to_is_not_spare() -> None:
    regions = [Region(100)]
    spare_memory.leave(regions, kept=False)
    assert (len(regions), spare_sizes()) == (1, [])


@torch.no_grad()
def test_a_clip_leaves_all_to_the_next() -> None:
    vae = random_vae(small_config(), torch.float32)
    video = random_video(9, 32, 32).float()
    vae.encode(video)
    after_one = spare_sizes()
    vae.encode(video)
    assert after_one
    assert spare_sizes() == after_one


@torch.no_grad()
def test_streams_side_by_side_share_what_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = random_vae(small_config(), torch.float32)
    video, latents = random_video(9, 32, 32).float(), random_latents(vae.config, 3, 4, 4).float()
    alone = [vae.encode(video), vae.decode(latents)]
    empty_cache()
    place, passing = Workspace.place, []

    def noted(self: Workspace, size: int, *, kept: bool = False, written: bool = False) -> tuple[Region, int, int]:
        lent = place(self, size, kept=kept, written=written)
        if not kept:
            passing.append(lent[0])
        return lent

    monkeypatch.setattr(Workspace, "place", noted)
    encoding, decoding = EncodeStream(vae), DecodeStream(vae)
    results: tuple[list[torch.Tensor], ...] = ([], [])
    for index, (start, stop) in enumerate([(0, 1), (1, 5), (5, 9)]):
        for stream, chunk, parts in (
            (encoding, video[:, :, start:stop], results[0]),
            (decoding, latents[:, :, index : index + 1], results[1]),
        ):
            part = stream.push(chunk)
            assert part is not None
            parts.append(part)
    for parts, expected in zip(results, alone, strict=True):
        assert torch.equal(torch.cat(parts, dim=2), expected)
    assert len(set(passing)) == 1


@torch.no_grad()
def test_threads_do_not_meet() -> None:
    vae = random_vae(small_config(), torch.float32)
    videos = [random_video(9, 32, 32).float() * scale for scale in (0.2, 0.5, 1.0)]
    expected = [vae.encode(video) for video in videos]
    found: dict[int, torch.Tensor] = {}

    def encode(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                found[index] = vae.encode(videos[index])
                assert torch.equal(found[index], expected[index])

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[index], expected[index]) for index in range(3))


def test_where_the_system_does_not_take_memory_on_demand_it_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # As under mlockall.
    region = Region(100)

    class Locked:
        def madvise(self, advice: int) -> None:
            raise OSError(22, "Invalid argument")

    assert region.address
    monkeypatch.setattr(region, "_pages", Locked())
    regions = [region]
    spare_memory.leave(regions, kept=False)
    assert (regions, spare_sizes()) == ([region], [])


def test_what_a_call_takes_in_turn_does_not_wait() -> None:
    workspace = Workspace(recycle=False)
    empty(workspace, 100)
    workspace.rest()
    del workspace
    assert spare_sizes() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with spare_memory._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if spare_memory._lock.acquire(blocking=False) else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
