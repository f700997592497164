"""Changes of resolution: pixels to patches and back, downsampling and upsampling.

The clip's first frame stands alone: no temporal resampling touches it. `split_first_frame` is where that is decided; a
chunk without the clip's first frame has nothing to set apart.
"""

from itertools import product

import torch
from einops import rearrange
from torch import Tensor, nn

from wan_vae.model.halo import Halo, Padding
from wan_vae.model.layers import CausalConv3d
from wan_vae.ops import needs_plain_ops
from wan_vae.ops.conv3d import (
    accepts_frame_list,
    add_bias_into,
    adds_bias_in_another_pass,
    can_fuse_upsample,
    convolve,
    convolve_upsampled,
    subpixel_weights,
)
from wan_vae.ops.workspace import Workspace

_FRAMES_SEEN = 3  # by a convolution that halves time


def patchify(x: Tensor, side: int, workspace: Workspace) -> Tensor:
    """(B, C, T, H, W) -> (B, C side^2, T, H / side, W / side), channel order (c, column, row), as in vae2_2.py."""
    if side == 1:
        return x
    if needs_plain_ops():
        return rearrange(x, "b c t (h q) (w r) -> b (c r q) t h w", q=side, r=side)
    batch, channels, frames, height, width = x.shape
    patches = workspace.empty((batch, channels * side**2, frames, height // side, width // side), like=x)
    by_position = rearrange(patches, "b (c r q) t h w -> c r q b t h w", r=side, q=side)
    # One position of the patch at a time: a single permuted copy runs over rows of only `side` pixels.
    for channel, column, row in product(range(channels), range(side), range(side)):
        by_position[channel, column, row].copy_(x[:, channel, :, row::side, column::side])
    return patches


def unpatchify(x: Tensor, side: int, workspace: Workspace, *, by_rows: bool = False) -> Tensor:
    """(B, C side^2, T, H, W) -> (B, C, T, side H, side W), the inverse of `patchify`.

    Args:
        x: The patches.
        side: The side of a patch, in pixels.
        workspace: Allocates the result where no gradients are recorded.
        by_rows: Whether the channel order is (c, row, column), as in `torch.pixel_shuffle`.
    """
    if side == 1:
        return x
    order = "(c q r)" if by_rows else "(c r q)"
    if needs_plain_ops():
        return rearrange(x, f"b {order} t h w -> b c t (h q) (w r)", q=side, r=side)
    batch, channels, frames, height, width = x.shape
    pixels = workspace.empty((batch, channels // side**2, frames, side * height, side * width), like=x)
    by_position = rearrange(x, f"b {order} t h w -> c r q b t h w", r=side, q=side)
    for channel, column, row in product(range(pixels.shape[1]), range(side), range(side)):
        pixels[:, channel, :, row::side, column::side].copy_(by_position[channel, column, row])
    return pixels


def split_first_frame(x: Tensor, halo: Halo) -> tuple[Tensor, Tensor]:
    """Split (B, C, T, H, W) into the clip's first frame, empty if it is not in `x`, and the rest."""
    first = 1 if halo.at_start else 0
    return x[:, :, :first], x[:, :, first:]


class StridedConv2d(nn.Conv2d):
    """A 3x3 convolution with stride 2, padded by one row below and one column on the right.

    (B, C, T, H, W) -> (B, C, T, H/2, W/2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        pieces, zero_padding = halo.pad(self, x, Padding(bottom=1, right=1))
        return convolve(
            pieces, self.weight.unsqueeze(2), self.bias, halo.workspace, zero_padding=zero_padding, stride=(1, 2, 2)
        )


class TemporalStridedConv3d(nn.Conv3d):
    """A convolution over three frames with stride 2 in time. A model of single pictures has it, but never uses it.

    (B, C, T, H, W) -> (B, C, (T - 1) / 2, H, W) at the clip's start, and T / 2 frames after it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (_FRAMES_SEEN, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        stride = (2, 1, 1)
        # Valid at the clip's start: no zeros are padded, the first output sees frames 0, 1 and 2.
        pieces, _ = halo.pad(self, x, Padding(before=1), split=accepts_frame_list(x, self.weight, stride))
        if sum(piece.shape[2] for piece in pieces) < _FRAMES_SEEN:
            return x[:, :, :0]
        return convolve(pieces, self.weight, self.bias, halo.workspace, stride=stride)


class Downsample(nn.Module):
    """Halves height and width, and time if `temporal` (`Resample`, downsample2d and 3d, in Wan's vae.py).

    (B, C, T, H, W) -> (B, C, T', H/2, W/2) with T' = T, or (T + 1) / 2 at the clip's start and T / 2 after it.
    """

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.conv = StridedConv2d(channels)
        self.time_conv = TemporalStridedConv3d(channels) if temporal else None

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        x = self.conv(x, halo)
        if self.time_conv is None:
            return x
        first, _ = split_first_frame(x, halo)
        halved = self.time_conv(x, halo)
        # torch.cat with an empty tensor would copy, and lose the channels-last order.
        present = [part for part in (first, halved) if part.shape[2] > 0]
        return present[0] if len(present) == 1 else torch.cat([first, halved], dim=2)


class UpsampleConv2d(nn.Conv2d):
    """Nearest-neighbor upsampling by 2, then a 3x3 convolution: (B, C_in, T, H, W) -> (B, C_out, T, 2H, 2W).

    After the upsampling, two of the three taps in each direction always meet the same value. The sum of those two taps
    gives the same result on the small tensor with 2x2 taps: one set of taps for each of the four output positions,
    four ninths of the multiplications, and the upsampled input never exists (subpixel convolution).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        (x,), zero_padding = halo.pad(self, x, Padding(top=1, bottom=1, left=1, right=1))
        if can_fuse_upsample(x, self.weight.unsqueeze(2)):
            return convolve_upsampled(x, self.weight.unsqueeze(2), self.bias, halo.workspace, zero_padding=zero_padding)
        later = self.bias if adds_bias_in_another_pass(x) else None
        bias = None if later is not None or self.bias is None else self.bias.repeat(4)
        positions = convolve(
            [x], subpixel_weights(self.weight).unsqueeze(2), bias, halo.workspace, zero_padding=zero_padding
        )
        batch, _, frames, height, width = positions.shape
        # The taps of the upper and left positions start one pixel before those of the lower and right positions.
        height, width = height - 1, width - 1
        upsampled = halo.workspace.empty((batch, self.out_channels, frames, 2 * height, 2 * width), like=positions)
        for position, values in enumerate(positions.chunk(4, dim=1)):
            down, right = divmod(position, 2)
            window = values[..., down : height + down, right : width + right]
            add_bias_into(upsampled[..., down::2, right::2], window, later)
        return upsampled


class Upsample(nn.Module):
    """Doubles height and width, and time if `temporal` (`Resample`, upsample2d and 3d, in Wan's vae.py).

    (B, C, T, H, W) -> (B, C_out, T', 2H, 2W) with T' = T, or 2T - 1 at the clip's start and 2T after it.
    """

    def __init__(self, in_channels: int, out_channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.time_conv = CausalConv3d(in_channels, 2 * in_channels, (3, 1, 1)) if temporal else None
        self.conv = UpsampleConv2d(in_channels, out_channels)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        if self.time_conv is not None:
            first, rest = split_first_frame(x, halo)
            if rest.shape[2] > 0:
                x = _interleave(first, self.time_conv(rest, halo), halo)
        return self.conv(x, halo)


def _interleave(first: Tensor, pairs: Tensor, halo: Halo) -> Tensor:
    """Return `first`, followed by the two channel halves of each frame of `pairs` as two frames."""
    batch, channels, frames, height, width = pairs.shape
    start = first.shape[2]
    out = halo.workspace.empty((batch, channels // 2, start + 2 * frames, height, width), like=pairs)
    out[:, :, :start] = first
    for offset, half in enumerate(pairs.chunk(2, dim=1)):
        out[:, :, start + offset :: 2] = half
    return out
