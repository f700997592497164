"""Frame 0 stands alone in every temporal resampling; the rest is checked by hand on small tensors."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from wan_vae.model.halo import Halo
from wan_vae.model.resample import Downsample, Upsample, UpsampleConv2d


def clip(frames: int) -> torch.Tensor:
    return torch.arange(1.0, frames + 1).view(1, 1, frames, 1, 1).expand(1, 1, frames, 2, 2).to(torch.float64)


def with_taps(module: torch.nn.Module, taps: torch.Tensor) -> torch.nn.Module:
    """Make the convolution in space pick one pixel and the one in time the given taps."""
    module = module.to(torch.float64).requires_grad_(False)
    module.conv.weight.zero_()
    module.conv.weight[0, 0, 1, 1] = 1
    module.conv.bias.zero_()
    module.time_conv.weight.copy_(taps.view(module.time_conv.weight.shape))
    module.time_conv.bias.zero_()
    return module


def test_down_keeps_frame_0_and_then_looks_at_it() -> None:
    down = with_taps(Downsample(1, temporal=True), torch.tensor([100.0, 10.0, 1.0]))
    assert down(clip(5), Halo())[0, 0, :, 0, 0].tolist() == [1.0, 123.0, 345.0]
    assert down(clip(1), Halo())[0, 0, :, 0, 0].tolist() == [1.0]


@given(frames=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 5))
def test_doubling_and_convolving_are_one(frames: int, height: int, width: int) -> None:
    layer = UpsampleConv2d(3, 2).to(torch.float64)
    x = torch.randn(2, 3, frames, height, width, dtype=torch.float64)
    doubled = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    expected = F.conv3d(doubled, layer.weight.unsqueeze(2), layer.bias, padding=(0, 1, 1))
    torch.testing.assert_close(layer(x, Halo()), expected)


def test_up_keeps_frame_0_and_does_not_look_at_it() -> None:
    taps = torch.tensor([[100.0, 10.0, 1.0], [0.0, 0.0, -1.0]])
    up = with_taps(Upsample(1, 1, temporal=True), taps)
    assert up(clip(3), Halo())[0, 0, :, 0, 0].tolist() == [1.0, 2.0, -2.0, 23.0, -3.0]
    assert up(clip(1), Halo())[0, 0, :, 0, 0].tolist() == [1.0]
