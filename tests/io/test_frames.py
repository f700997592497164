import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import small_config
from wan_vae.errors import UserError
from wan_vae.io.frames import FramesToTensors, tensors_to_frames

CPU = torch.device("cpu")


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_frames_are_padded_by_their_edges(frames: int, height: int, width: int, chunk: int, dtype: type) -> None:
    config = small_config(temporal_downsample=(True, True), width_multipliers=(1, 1, 1))
    levels = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, levels, (frames, height, width, 3), dtype=dtype, endpoint=True)
    clip = FramesToTensors((pixels[start : start + chunk] for start in range(0, frames, chunk)), config, CPU)
    video = torch.cat(list(clip), dim=2)
    assert clip.frames == frames
    padding = [(0, -(frames - 1) % 4), (0, -height % 4), (0, -width % 4), (0, 0)]
    expected = np.pad(pixels, padding, mode="edge").astype(np.float64) / levels * 2 - 1
    np.testing.assert_allclose(video[0].permute(1, 2, 3, 0).numpy(), expected, atol=1e-6)


def test_every_level_comes_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    (video, rest) = FramesToTensors([pixels], small_config(), CPU)
    assert rest.shape[2] == 0
    assert np.array_equal(next(tensors_to_frames([video], 16, 16, CPU)), pixels)
    whole, part = tensors_to_frames([video.to(torch.float64)[..., :3, :5], video], 5, 3, CPU)
    assert np.array_equal(whole, pixels[:, :3, :5])
    assert np.array_equal(part, pixels[:, :3, :5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_refused(dtype: torch.dtype) -> None:
    video = torch.zeros(1, 3, 2, 8, 8, dtype=dtype)
    video[0, 1, 1, 7, 7] = torch.nan
    assert next(tensors_to_frames([video], 7, 8, CPU)).shape == (2, 8, 7, 3)
    frames = tensors_to_frames([video[:, :, :1], video], 8, 8, CPU)
    assert next(frames).shape == (1, 8, 8, 3)
    with pytest.raises(UserError, match=f"NaN for pixels in {dtype}; compute in a wider"):
        next(frames)
