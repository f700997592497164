"""What a call on a GPU copies, by count on the meta device: no GPU is needed, and nothing is computed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wan_vae import WanVAE
from wan_vae.config import load_config
from wan_vae.inference import passes
from wan_vae.model import halo, layers

GPU = torch.device("cuda")
GIB = 2**30


class OnGPU(WanVAE):
    """A model of meta tensors that takes itself to be on a GPU."""

    device = GPU


class CountHaloCopies(TorchDispatchMode):
    """Counts the bytes that copies by model/halo.py read and write."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default:
            frame = sys._getframe(1)
            while "wan_vae" not in frame.f_globals["__name__"]:
                frame = frame.f_back
            if frame.f_globals["__name__"] == halo.__name__:
                self.total += args[1].nbytes + args[0].nbytes
        return function(*args, **kwargs or {})


@contextmanager
def free(size: int) -> Iterator[None]:
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "mem_get_info", return_value=(size, size)),
        mock.patch.object(torch.cuda, "memory_reserved", return_value=0),
        mock.patch.object(torch.cuda, "memory_allocated", return_value=0),
    ):
        yield


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    with torch.device("meta"):
        return OnGPU(load_config("wan2.1")).to(torch.bfloat16).eval().requires_grad_(False)


def copied(vae: WanVAE, direction: str, size: int) -> int:
    """Return the bytes that halos copy for 81 frames in 720p where so many bytes are free."""
    with (
        free(size),
        mock.patch.object(passes, "device_of", return_value=GPU),
        mock.patch.object(passes, "can_capture", return_value=False),
        mock.patch.object(layers, "norm_silu_into"),
        torch.inference_mode(),
        CountHaloCopies() as copies,
    ):
        if direction == "decode":
            vae.decode(torch.empty(1, 16, 21, 90, 160, device="meta", dtype=torch.bfloat16))
        else:
            vae.encode(torch.empty(1, 3, 81, 720, 1280, device="meta", dtype=torch.bfloat16))
    return copies.total


@pytest.mark.parametrize(("size", "most"), [(60, 140e9), (16, 360e9)])
def test_decoding_in_720p_copies_little_where_memory_is_free(vae: WanVAE, size: int, most: float) -> None:
    assert copied(vae, "decode", size * GIB) <= most


@pytest.mark.parametrize(("size", "latents"), [(60, 3), (16, 1)])
def test_plan_of_720p_takes_whole_pictures_in_what_is_free(vae: WanVAE, size: int, latents: int) -> None:
    with free(size * GIB):
        plan = vae.plan("decode", frames=81, height=720, width=1280, memory="auto", device="cuda")
    assert (plan.tiling, plan.latents_per_pass) == (None, latents)
    assert plan.peak <= 0.8 * size * GIB


def test_default_chunk_size_grows_with_free_memory_up_to_tensors_of_2_gib(vae: WanVAE) -> None:
    found = []
    for size in (8, 16, 30, 80, 1000):
        with free(size * GIB):
            found.append([vae.default_chunk_size(*picture) for picture in ((720, 1280), (480, 832), (64, 64))])
    assert found == [[1, 1, 8], [1, 3, 8], [3, 7, 8], [3, 7, 8], [3, 7, 8]]
