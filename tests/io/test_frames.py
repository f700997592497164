from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import small_config
from tests.lazy_device import LazyDevice, LazyTensor
from wan_vae.errors import UserError
from wan_vae.io import frames_to_tensor, tensor_to_frames
from wan_vae.io.frames import FramesToTensors, one_behind, tensors_to_frames, to_device, to_host

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([3, 4]),
)
def test_frames_to_tensors_of_any_size_pads_with_edges(
    frames: int, height: int, width: int, chunk: int, dtype: type, channels: int
) -> None:
    config = small_config(temporal_downsample=(True, True), width_multipliers=(1, 1, 1))
    levels = np.iinfo(dtype).max
    shape = (frames, height, width, channels)
    pixels = np.random.default_rng(0).integers(0, levels, shape, dtype=dtype, endpoint=True)
    clip = FramesToTensors((pixels[start : start + chunk] for start in range(0, frames, chunk)), config, CPU)
    video = torch.cat(list(clip), dim=2)
    assert clip.frames == frames
    padding = [(0, -(frames - 1) % 4), (0, -height % 4), (0, -width % 4), (0, 0)]
    expected = np.pad(pixels, padding, mode="edge").astype(np.float64) / levels * 2 - 1
    np.testing.assert_allclose(video[0].permute(1, 2, 3, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 4])
def test_frames_to_tensors_and_back_keeps_every_level(channels: int) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(channels, axis=-1)
    (video, rest) = FramesToTensors([pixels], small_config(), CPU)
    assert rest.shape[2] == 0
    assert np.array_equal(next(tensors_to_frames([video], 16, 16, CPU)), pixels)
    whole, part = tensors_to_frames([video.to(torch.float64)[..., :3, :5], video], 5, 3, CPU)
    assert np.array_equal(whole, pixels[:, :3, :5])
    assert np.array_equal(part, pixels[:, :3, :5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_to_frames_of_nan_is_refused(dtype: torch.dtype) -> None:
    video = torch.zeros(1, 3, 2, 8, 8, dtype=dtype)
    video[0, 1, 1, 7, 7] = torch.nan
    assert next(tensors_to_frames([video], 7, 8, CPU)).shape == (2, 8, 7, 3)
    frames = tensors_to_frames([video[:, :, :1], video], 8, 8, CPU)
    assert next(frames).shape == (1, 8, 8, 3)
    with pytest.raises(UserError, match=f"NaN for pixels in {dtype}; compute in a wider"):
        next(frames)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_frames_to_tensor_agrees_with_the_stream(dtype: type, channels: int) -> None:
    frames = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, 4, 6, channels), dtype=dtype, endpoint=True)
    video = frames_to_tensor(frames)
    assert (video.shape, video.dtype) == ((1, channels, 3, 4, 6), torch.float32)
    assert torch.equal(video, next(iter(FramesToTensors([frames], small_config(), CPU))))
    frames.setflags(write=False)
    assert torch.equal(frames_to_tensor(frames[:, ::-1]), video.flip(3))
    (rounded,) = tensors_to_frames([video], 6, 4, CPU)
    assert np.array_equal(tensor_to_frames(video), rounded)
    assert np.array_equal(tensor_to_frames(video[0].double().requires_grad_()), rounded)
    assert dtype == np.uint16 or np.array_equal(rounded, frames)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2, 2, 2), np.uint8), np.zeros((1, 2, 2, 3))]
)
def test_frames_to_tensor_of_a_wrong_kind_is_refused(frames: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"must be uint8 or uint16 of shape \(n, height, width, 3\), or .* 4\) with"):
        frames_to_tensor(frames)


def test_frames_to_tensor_of_alpha_gives_minus_1_where_transparent_and_1_where_opaque() -> None:
    frames = np.zeros((1, 1, 3, 4), np.uint8)
    frames[0, 0, :, 3] = 0, 255, 51
    video = frames_to_tensor(frames)
    assert video[0, 3, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])
    assert np.array_equal(tensor_to_frames(video), frames)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(2, 3, 1, 2, 2), r"shape \(2, 3, 1, 2, 2\); it must be one clip"),
        (torch.zeros(1, 2, 2), "must be one clip"),
        (torch.zeros(2, 1, 2, 2), r"or \(3, n, height, width\), with 4 for 3 if it has alpha"),
        (torch.zeros(1, 3, 0, 2, 2), "must be one clip"),
        (torch.zeros(1, 3, 1, 2, 2, dtype=torch.uint8), "torch.uint8 .* floating point"),
        (torch.full((3, 1, 2, 2), torch.nan), "holds NaN"),
    ],
)
def test_tensor_to_frames_of_a_wrong_kind_is_refused(video: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tensor_to_frames(video)


def test_to_device_and_to_host_on_the_cpu_yield_the_same_tensors() -> None:
    asked = []

    def tensors() -> Iterator[Tensor]:
        for number in range(3):
            asked.append(number)
            yield torch.full((2, 3), number)

    for number, (tensor,) in enumerate(to_host(zip(to_device(tensors(), CPU)), CPU)):
        assert asked[-1] == number
        assert torch.equal(tensor, torch.full((2, 3), number))
    assert asked == [0, 1, 2]
    original = torch.zeros(2)
    assert next(to_device([original], CPU)) is original
    assert next(to_host([(original, original)], CPU))[1] is original


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_behind_yields_after_the_next_is_taken(count: int) -> None:
    order = []

    def items() -> Iterator[int]:
        for item in range(count):
            order.append(f"took {item}")
            yield item

    for item in one_behind(items()):
        order.append(f"gave {item}")
    taken, given = [f"took {item}" for item in range(count)], [f"gave {item}" for item in range(count)]
    interleaved = [step for pair in zip(taken[1:], given[:-1], strict=True) for step in pair]
    assert order == [*taken[:1], *interleaved, *given[-1:]]


def test_copies_are_waited_for_before_use(monkeypatch: pytest.MonkeyPatch) -> None:
    device = LazyDevice(monkeypatch)
    sent = [LazyTensor(device, number) for number in range(5)]
    moved: list[LazyTensor] = []
    computed: list[LazyTensor] = []

    def compute() -> Iterator[tuple[LazyTensor]]:
        for tensor in to_device(sent, CUDA):
            moved.append(tensor)
            computed.append(tensor.plus(100))
            yield (computed[-1],)

    for number, (received,) in enumerate(to_host(compute(), CUDA)):
        assert received.value == 100 + number
        assert len(computed) == min(number + 2, 5), "the device has the next to compute"
        assert all(tensor.value is None for tensor in computed[number + 1 :]), "nobody waits for that"
    assert number == 4
    for tensor in moved:  # memory must not go to others while another stream uses it
        assert tensor.made_on is not device.computing
        assert tensor.used_on == [device.computing]
    for tensor in computed:
        assert tensor.made_on is device.computing
        assert tensor.used_on[0] not in (device.computing, moved[0].made_on)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_copies_on_cuda_are_exact_while_the_device_computes() -> None:
    generator = torch.Generator().manual_seed(0)
    sent = [torch.randint(0, 256, (4, 300, 400, 3), generator=generator).to(torch.uint8) for _ in range(12)]

    def computed() -> Iterator[tuple[Tensor, Tensor]]:
        work = torch.rand(2048, 2048, device=CUDA)
        for tensor in to_device(sent, CUDA):
            for _ in range(20):  # so that a copy that did not wait would come too early
                work = (work @ work).clamp(0, 1)
            yield tensor + 1, tensor.amax()

    torch.cuda.set_sync_debug_mode("error")
    try:
        received = [(values.clone(), largest.clone()) for values, largest in to_host(computed(), CUDA)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for before, (values, largest) in zip(sent, received, strict=True):
        assert torch.equal(values, before + 1)
        assert torch.equal(largest, before.amax())
