"""With one frame, every block is its two-dimensional form with the last temporal taps as kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import randomize, small_config
from wan_vae.config import BLOCK_KINDS
from wan_vae.model.blocks import residual_block
from wan_vae.model.halo import Halo


def conv(layer: nn.Conv3d, x: Tensor) -> Tensor:
    """Apply the last temporal tap of a convolution to (N, C, H, W)."""
    kernel = layer.weight[:, :, -1]
    return F.conv2d(x, kernel, layer.bias, padding=kernel.shape[-1] // 2)


def batch_norm(layer: nn.BatchNorm3d, x: Tensor) -> Tensor:
    def shaped(values: Tensor) -> Tensor:
        return values[:, None, None]

    scaled = (x - shaped(layer.running_mean)) / shaped(layer.running_var + layer.eps).sqrt()
    return scaled * shaped(layer.weight) + shaped(layer.bias)


def rms_norm(layer: nn.Module, x: Tensor) -> Tensor:
    return x / x.square().mean(dim=1, keepdim=True).sqrt() * layer.gamma[:, 0]


def shortcut(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Identity):
        return x
    if isinstance(layer, nn.Sequential):
        return batch_norm(layer[1], conv(layer[0], x))
    return conv(layer, x)


def plain(block: nn.Module, x: Tensor) -> Tensor:
    x = conv(block.conv1, F.silu(rms_norm(block.norm1, x)))
    return conv(block.conv2, F.silu(rms_norm(block.norm2, x)))


def wan(block: nn.Module, x: Tensor) -> Tensor:
    return plain(block, x) + shortcut(block.shortcut, x)


def resnet(block: nn.Module, x: Tensor) -> Tensor:
    branch = F.relu(batch_norm(block.norm1, conv(block.conv1, x)))
    return F.relu(batch_norm(block.norm2, conv(block.conv2, branch)) + shortcut(block.shortcut, x))


def bottleneck(block: nn.Module, x: Tensor) -> Tensor:
    branch = F.relu(batch_norm(block.norm1, conv(block.conv1, x)))
    branch = F.relu(batch_norm(block.norm2, conv(block.conv2, branch)))
    return F.relu(batch_norm(block.norm3, conv(block.conv3, branch)) + shortcut(block.shortcut, x))


def preact(block: nn.Module, x: Tensor) -> Tensor:
    branch = conv(block.conv1, F.relu(batch_norm(block.norm1, x)))
    return conv(block.conv2, F.relu(batch_norm(block.norm2, branch))) + shortcut(block.shortcut, x)


def dense(block: nn.Module, x: Tensor) -> Tensor:
    features = [x]
    for norm, layer in zip(block.norms, block.convs, strict=True):
        features.append(conv(layer, F.relu(batch_norm(norm, torch.cat(features, dim=1)))))
    return conv(block.transition, F.relu(batch_norm(block.transition_norm, torch.cat(features, dim=1))))


IN_TWO_DIMENSIONS = {
    "wan": wan,
    "plain": plain,
    "resnet": resnet,
    "bottleneck": bottleneck,
    "preact": preact,
    "dense": dense,
}


@pytest.mark.parametrize(("in_channels", "out_channels"), [(6, 6), (4, 6)])
@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_one_frame_is_the_two_dimensional_block(kind: str, in_channels: int, out_channels: int) -> None:
    block = residual_block(in_channels, out_channels, small_config(block=kind)).to(torch.float64).eval()
    block.requires_grad_(False)
    randomize(block)
    x = torch.randn(2, in_channels, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        block(x.unsqueeze(2), Halo()), IN_TWO_DIMENSIONS[kind](block, x).unsqueeze(2), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_frames_before_matter(kind: str) -> None:
    # Otherwise a block that ignored its other temporal taps would pass the test above.
    block = residual_block(6, 6, small_config(block=kind)).to(torch.float64).eval().requires_grad_(False)
    randomize(block)
    x = torch.randn(1, 6, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(block(x, Halo())[:, :, 1:], block(x[:, :, 1:], Halo()))


def test_a_dense_block_grows_by_its_growth() -> None:
    block = residual_block(4, 6, small_config(block="dense", dense_growth=5, dense_layers=3))
    assert [layer.in_channels for layer in block.convs] == [4, 9, 14]
    assert block.transition.in_channels == 19
    assert block.transition.out_channels == 6


def test_a_bottleneck_narrows_by_its_ratio() -> None:
    block = residual_block(8, 16, small_config(block="bottleneck", bottleneck_ratio=4))
    assert (block.conv2.in_channels, block.conv2.out_channels) == (4, 4)
