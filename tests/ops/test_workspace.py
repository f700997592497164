"""Memory is reused within a workspace and passes from one to the next; memory in use never does."""

import mmap
import os
import threading
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import random_latents, random_vae, random_video, small_config
from wan_vae import DecodeStream, EncodeStream, empty_cache
from wan_vae.ops import workspace as module
from wan_vae.ops.workspace import Region, Workspace

LIKE = torch.zeros(0)
needs_reclaimable_memory = pytest.mark.skipif(not hasattr(mmap, "MADV_FREE"), reason="this system has no MADV_FREE")


@pytest.fixture(autouse=True)
def _nothing_is_cached() -> None:
    empty_cache()


def empty(workspace: Workspace, size: int, *, persistent: bool = False) -> torch.Tensor:
    """16 * size bytes."""
    with torch.no_grad():
        return workspace.empty((1, size, 1, 2, 2), like=LIKE, persistent=persistent)


def cached_bytes() -> int:
    return Workspace().stats().cached


def test_tensors_are_stored_channels_last() -> None:
    with torch.no_grad():
        x = Workspace().empty((2, 3, 4, 5, 6), like=LIKE.to(torch.bfloat16))
    assert x.shape == (2, 3, 4, 5, 6)
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last_3d)


def test_memory_is_freed_with_the_last_view() -> None:
    workspace = Workspace()
    x = empty(workspace, 100)
    address, view = x.data_ptr(), x[:, :1]
    del x
    assert empty(workspace, 100).data_ptr() != address
    del view
    assert address in {first.data_ptr() for first in (empty(workspace, 100), empty(workspace, 100))}


def test_a_tensor_outlives_its_workspace() -> None:
    workspace = Workspace()
    x = empty(workspace, 1000).fill_(3)
    del workspace
    assert (x == 3).all()


@given(st.lists(st.integers(0, 50), max_size=20), st.data())
def test_no_two_tensors_of_a_workspace_share_memory(sizes: list[int], data: st.DataObject) -> None:
    workspace, held = Workspace(), {}
    for index, size in enumerate(sizes):
        held[index] = empty(workspace, size).fill_(index)
        if data.draw(st.booleans()):
            del held[data.draw(st.sampled_from(sorted(held)))]
    for index, x in held.items():
        assert (x == index).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.randoms())
def test_adjacent_freed_blocks_become_one(sizes: list[int], random: Random) -> None:
    workspace = Workspace()
    held = [empty(workspace, size) for size in sizes]
    first = held[0].data_ptr()
    random.shuffle(held)
    while held:
        held.pop()
    assert empty(workspace, sum(sizes)).data_ptr() == first


def test_reserved_memory_is_the_most_that_was_allocated_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIN_REGION_BYTES", 0)
    workspace = Workspace()
    for size in (16, 32, 48, 32, 16):
        x = empty(workspace, size)
        del x
    assert workspace.stats() == (4 * 4 * 48, 0, 0)


def test_a_region_in_use_is_kept_when_another_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIN_REGION_BYTES", 0)
    workspace = Workspace()
    x = empty(workspace, 16).fill_(1)
    y = empty(workspace, 32).fill_(2)
    del y
    z = empty(workspace, 48).fill_(3)
    assert (x == 1).all()
    assert (z == 3).all()
    assert workspace.stats() == (4 * 4 * (16 + 48), 4 * 4 * (16 + 48), 0)


def test_stats_count_reserved_allocated_and_cached_bytes() -> None:
    workspace, size = Workspace(), 2**28
    assert workspace.stats() == (0, 0, 0)
    x, y = empty(workspace, 5), empty(workspace, 8, persistent=True)
    assert workspace.stats() == (2 * size, 128 + 128, 0)  # blocks are multiples of 64 bytes
    del x
    assert workspace.stats() == (2 * size, 128, 0)
    workspace.trim()
    cached = size if hasattr(mmap, "MADV_FREE") else 0
    assert workspace.stats() == (2 * size - cached, 128, cached)
    assert y.numel() == 32


def test_persistent_memory_is_writable_in_any_mode() -> None:
    with torch.inference_mode():
        x = Workspace.empty_persistent((2, 3, 4, 5, 6), like=LIKE)
    assert x.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        assert (x.fill_(1) == 1).all()


def test_with_gradients_no_memory_is_reserved() -> None:
    workspace = Workspace()
    with torch.enable_grad():
        workspace.empty((1, 2, 3, 4, 5), like=LIKE)
    assert workspace.stats() == (0, 0, 0)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages")
def test_a_kernel_without_huge_pages_maps_ordinary_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutHugePages(mmap.mmap):
        def madvise(self, advice: int, *_: int) -> None:
            if advice == mmap.MADV_HUGEPAGE:
                raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", WithoutHugePages)
    assert (empty(Workspace(), 100).fill_(1) == 1).all()
    assert (Workspace.empty_persistent((1, 2, 3, 4, 5), like=LIKE).fill_(1) == 1).all()


@needs_reclaimable_memory
@pytest.mark.parametrize("persistent", [False, True])
def test_the_next_workspace_gets_the_same_memory(persistent: bool) -> None:
    workspace = Workspace()
    address = empty(workspace, 100, persistent=persistent).data_ptr()
    del workspace
    assert empty(Workspace(), 100, persistent=not persistent).data_ptr() != address
    assert empty(Workspace(), 100, persistent=persistent).data_ptr() == address


@needs_reclaimable_memory
def test_a_trimmed_workspace_allocates_again() -> None:
    workspace = Workspace()
    address = empty(workspace, 100).data_ptr()
    workspace.trim()
    other = empty(Workspace(), 100).fill_(1)
    assert other.data_ptr() == address
    assert empty(workspace, 100).fill_(2).data_ptr() != address
    assert (other == 1).all()


def test_memory_in_use_is_not_cached() -> None:
    workspace = Workspace()
    x = empty(workspace, 100).fill_(3)
    workspace.trim()
    del workspace
    assert cached_bytes() == 0
    y = empty(Workspace(), 100).fill_(4)
    assert (y == 4).all()
    assert (x == 3).all()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60), st.booleans(), st.booleans()), max_size=30))
def test_no_two_tensors_of_several_workspaces_share_memory(steps: list[tuple[int, int, bool, bool]]) -> None:
    workspaces, held = [Workspace() for _ in range(3)], {}
    for index, (which, size, persistent, ends) in enumerate(steps):
        held[index] = empty(workspaces[which], size, persistent=persistent).fill_(index)
        if ends:
            del held[min(held)]
            workspaces[which].trim()
            workspaces[(which + 1) % 3] = Workspace()
    for index, x in held.items():
        assert (x == index).all()


@needs_reclaimable_memory
def test_empty_cache_unmaps_all_cached_memory() -> None:
    workspace = Workspace()
    empty(workspace, 100)
    workspace.trim()
    assert cached_bytes() > 0
    empty_cache()
    assert cached_bytes() == 0


@needs_reclaimable_memory
def test_the_cache_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CACHED_BYTES", 1000)
    regions = [Region(size) for size in (600, 500, 300)]
    assert all(region.address for region in regions)
    module.cache_free_regions(regions, persistent=False)
    assert (cached_bytes(), [region.size for region in regions]) == (600 + 300, [500])


@needs_reclaimable_memory
def test_cached_regions_that_are_too_small_are_unmapped() -> None:
    regions = [Region(100)]
    assert regions[0].address
    module.cache_free_regions(regions, persistent=False)
    assert module.take_cached_region(200, persistent=False) is None
    assert cached_bytes() == 0


def test_a_region_that_was_never_mapped_is_not_cached() -> None:
    regions = [Region(100)]
    module.cache_free_regions(regions, persistent=False)
    assert (len(regions), cached_bytes()) == (1, 0)


@needs_reclaimable_memory
@torch.no_grad()
def test_the_next_clip_reuses_all_memory() -> None:
    vae = random_vae(small_config(), torch.float32)
    video = random_video(9, 32, 32).float()
    vae.encode(video)
    after_one = cached_bytes()
    vae.encode(video)
    assert after_one > 0
    assert cached_bytes() == after_one


@needs_reclaimable_memory
@torch.no_grad()
def test_alternating_streams_share_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = random_vae(small_config(), torch.float32)
    video, latents = random_video(9, 32, 32).float(), random_latents(vae.config, 3, 4, 4).float()
    alone = [vae.encode(video), vae.decode(latents)]
    empty_cache()
    allocate, used = Workspace.allocate, []

    def noted(self: Workspace, size: int, *, persistent: bool = False, mapped: bool = False) -> tuple[Region, int, int]:
        block = allocate(self, size, persistent=persistent, mapped=mapped)
        if not persistent:
            used.append(block[0])
        return block

    monkeypatch.setattr(Workspace, "allocate", noted)
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
    assert len(set(used)) == 1


@torch.no_grad()
def test_threads_do_not_share_memory() -> None:
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


@needs_reclaimable_memory
def test_locked_memory_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    # As under mlockall.
    region = Region(100)

    class Locked:
        def madvise(self, advice: int) -> None:
            raise OSError(22, "Invalid argument")

    assert region.address
    monkeypatch.setattr(region, "_pages", Locked())
    regions = [region]
    module.cache_free_regions(regions, persistent=False)
    assert (regions, cached_bytes()) == ([region], 0)


def test_a_workspace_without_recycling_caches_nothing() -> None:
    workspace = Workspace(recycle=False)
    empty(workspace, 100)
    workspace.trim()
    del workspace
    assert cached_bytes() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_inherit_a_held_lock() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with module._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if module._lock.acquire(blocking=False) else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
