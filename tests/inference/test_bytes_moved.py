"""What a call on a GPU moves through memory, by count on the meta device: no GPU is needed, nothing is computed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wan_vae import WanVAE
from wan_vae.config import load_config
from wan_vae.inference import pass_runner, passes
from wan_vae.model import blocks, halo, layers, resample
from wan_vae.ops import conv3d

GPU = torch.device("cuda")
GIB = 2**30


class OnGPU(WanVAE):
    """A model of meta tensors that takes itself to be on a GPU."""

    device = GPU


class CountBytes(TorchDispatchMode):
    """Counts the bytes that are read and written between convolutions and attention.

    Attributes:
        passes: By all passes, halo copies included.
        halo_copies: By copies in model/halo.py.
        weights: To bring weights into the order that cuDNN reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passes = self.halo_copies = self.weights = 0
        self._computing = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if function.is_view or "empty" in function.__name__ or self._computing:
            return result
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor) and x.dim() == 5]
        if function is torch.ops.aten.copy_.default:
            tensors = [args[0], args[1]]
            frame = sys._getframe(1)
            while "wan_vae" not in frame.f_globals["__name__"]:
                frame = frame.f_back
            self.halo_copies += sum(x.nbytes for x in tensors) * (frame.f_globals["__name__"] == halo.__name__)
        self.passes += sum(x.nbytes for x in tensors)
        return result

    def convolve(self, x, weight, bias, padding, stride, residual):
        """Stand in for `convolve_on_gpu`."""
        if not weight.is_contiguous(memory_format=torch.channels_last_3d):
            self.weights += 2 * weight.nbytes
        self._computing = True
        out = torch.nn.functional.conv3d(x, weight, None, stride, (0, *padding))
        out = torch.empty_like(out, memory_format=torch.channels_last_3d)
        self._computing = False
        if residual is not None:  # with which a bias costs nothing
            self.passes += 2 * out.nbytes + residual.nbytes
        elif bias is not None:
            self.passes += 2 * out.nbytes
        return out

    def norm(self, out, x, gamma, bias=None):
        """Stand in for `norm_silu_into`."""
        self.passes += x.nbytes + out.nbytes


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


def count(vae: WanVAE, direction: str, size: int) -> CountBytes:
    """Count the bytes for 81 frames in 720p where so many bytes are free."""
    with (
        free(size),
        mock.patch.object(passes, "device_of", return_value=GPU),
        mock.patch.object(pass_runner, "can_capture", return_value=False),
        mock.patch.object(conv3d, "device_of", return_value=GPU),
        mock.patch.object(conv3d, "supports_triton", return_value=True),
        mock.patch.object(conv3d.kernels, "supports_amx", return_value=False),
        mock.patch.object(conv3d.kernels, "supports_winograd", return_value=False),
        mock.patch.object(blocks, "attention", lambda query, key, value: query),
        torch.inference_mode(),
        CountBytes() as counted,
        mock.patch.object(conv3d, "convolve_on_gpu", counted.convolve),
        mock.patch.object(layers, "norm_silu_into", counted.norm),
        mock.patch.object(resample, "add_bias_into", lambda out, x, bias: out.copy_(x)),
    ):
        if direction == "decode":
            vae.decode(torch.empty(1, 16, 21, 90, 160, device="meta", dtype=torch.bfloat16))
        else:
            vae.encode(torch.empty(1, 3, 81, 720, 1280, device="meta", dtype=torch.bfloat16))
    return counted


@pytest.mark.parametrize(("size", "most"), [(60, 140e9), (16, 360e9)])
def test_decoding_in_720p_copies_little_where_memory_is_free(vae: WanVAE, size: int, most: float) -> None:
    assert 0.8 * most <= count(vae, "decode", size * GIB).halo_copies <= most  # 0 would say that nothing is counted


@pytest.mark.parametrize(("direction", "most"), [("decode", 0.265), ("encode", 0.19)])
def test_passes_in_720p_take_little_time_at_3_terabytes_a_second(vae: WanVAE, direction: str, most: float) -> None:
    # 0.480 and 0.349 s where one latent a pass, biases of their own and upsampled pixels cost passes.
    assert 0.8 * most <= count(vae, direction, 60 * GIB).passes / 3e12 <= most


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_weights_are_in_the_order_that_cudnn_reads(vae: WanVAE, direction: str) -> None:
    # But for the last taps, which a clip's first frame meets alone: a third of the weights, once.
    assert count(vae, direction, 60 * GIB).weights <= 2 * sum(weight.nbytes for weight in vae.parameters()) / 3


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
