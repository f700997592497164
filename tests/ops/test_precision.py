"""Which precision float32 convolutions ask cuDNN for, on a CPU that is taken for a GPU."""

import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import random_latents, random_vae, random_video, small_config
from tests.test_tiny import random_tiny
from wan_vae import WanVAE
from wan_vae.config import BLOCK_KINDS
from wan_vae.ops import conv3d, precision


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Return what each convolution allows; all others fail."""
    allowed: list[bool] = []
    convolve = torch._convolution

    def recording(*args: Any) -> Tensor:
        allowed.append(args[-1])
        return convolve(*args)

    def forbidden(*args: object, **options: object) -> Tensor:
        raise AssertionError("a convolution leaves the precision to PyTorch's switch")

    monkeypatch.setattr(precision, "_is_on_gpu", lambda x: True)
    monkeypatch.setattr(torch, "_convolution", recording)
    for name in ("conv2d", "conv3d"):
        monkeypatch.setattr(F, name, forbidden)
    # The paths of CPUs.
    monkeypatch.setattr(conv3d, "_onednn_supports", lambda dtype: False)
    for name in ("supports_amx", "supports_winograd"):
        monkeypatch.setattr(conv3d.kernels, name, lambda *args, **options: False)
    return allowed


def vae_of(**changes: object) -> WanVAE:
    return random_vae(small_config(**changes), torch.float32)


VIDEO = random_video(5, 8, 8, dtype=torch.float32)


@pytest.mark.parametrize("block", BLOCK_KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "tf32"])
def test_every_convolution_of_inference_asks_for_the_models_precision(
    block: str, dtype: str, asked: list[bool]
) -> None:
    vae = vae_of(block=block).set_dtypes(encoder=dtype, decoder=dtype)
    with torch.no_grad():
        vae.decode(vae.encode(VIDEO))
    assert set(asked) == {dtype == "tf32"}
    assert len(asked) > 20


@pytest.mark.parametrize("dtype", ["fp32", "tf32"])
@pytest.mark.parametrize("name", ["taew2_1", "taew2_2_super"])
def test_every_convolution_of_a_tiny_autoencoder_asks_for_its_precision(
    name: str, dtype: str, asked: list[bool]
) -> None:
    vae = deepcopy(random_tiny(name)).set_dtypes(encoder=dtype, decoder=dtype)
    vae.decode(vae.encode(random_video(5, 32, 32, dtype=torch.float32)))
    assert set(asked) == {dtype == "tf32"}


def test_halves_have_their_own_precision(asked: list[bool]) -> None:
    vae = vae_of().set_dtypes(encoder="fp32", decoder="tf32")
    latents = vae.encode(VIDEO)
    assert set(asked) == {False}
    asked.clear()
    vae.decode(latents)
    assert set(asked) == {True}
    assert torch.equal(vae.set_dtypes(encoder="float32", decoder="fp32").encode(VIDEO), latents)
    asked.clear()
    vae.decode(latents)
    assert set(asked) == {False}


@pytest.mark.parametrize("error", [False, True])
def test_nothing_global_changes_during_a_pass_or_after_it(
    error: bool, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, seen = vae_of().set_dtypes(encoder="tf32", decoder="tf32"), []
    forward = vae.decoder.head.forward

    def looking(*args: object) -> Tensor:
        thread = threading.Thread(target=lambda: seen.append((switches(), precision._tf32.get())))
        thread.start()
        thread.join()
        if error:
            raise ZeroDivisionError
        return forward(*args)

    def switches() -> tuple[object, ...]:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before = switches()
    monkeypatch.setattr(vae.decoder.head, "forward", looking)
    latents = random_latents(vae.config, 2, 2, 2, dtype=torch.float32)
    if error:
        with pytest.raises(ZeroDivisionError):
            vae.decode(latents)
    else:
        vae.decode(latents)
    assert set(seen) == {(before, False)}
    assert switches() == before
    assert not precision._tf32.get()


@pytest.mark.parametrize("dtype", ["float32", "tf32"])
def test_dtype_of_a_loaded_model_may_be_tf32(dtype: str) -> None:
    vae = WanVAE.from_pretrained("nano", dtype=dtype)
    assert vae.dtype == vae.decoder_dtype == torch.float32
    assert vae.encoder_tf32 == vae.decoder_tf32 == (dtype == "tf32")


@pytest.mark.parametrize(
    "context",
    [torch.enable_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
)
def test_training_and_autocast_leave_precision_to_torch(
    context: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_is_on_gpu", lambda x: True)
    monkeypatch.setattr(torch, "_convolution", None)
    x, weight = torch.ones(1, 2, 3, 4, 5), torch.ones(3, 2, 1, 1, 1, requires_grad=True)
    with context():
        assert precision.convolution(x, weight, None, (1, 1, 1), (0, 0, 0)).shape == (1, 3, 3, 4, 5)


def test_convolution_is_that_of_torch(asked: list[bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    for size, groups in (((4, 7, 6), 1), ((7, 6), 2), ((7, 6), 1)):
        x, bias = torch.randn(2, 4, *size, generator=generator), torch.randn(6, generator=generator)
        weight = torch.randn(6, 4 // groups, *[3] * len(size), generator=generator)
        stride, padding = (1, 2, 2)[-len(size) :], (0, 1, 1)[-len(size) :]
        found = precision.convolution(x, weight, bias, stride, padding, groups)
        function = torch.conv3d if len(size) == 3 else torch.conv2d
        assert torch.equal(found, function(x, weight, bias, stride, padding, 1, groups))
    assert len(asked) == 3
