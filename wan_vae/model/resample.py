"""Changes of resolution. The clip's first frame stands alone: no temporal resampling touches it.

`split_first_frame` is where that is decided; a tensor without the clip's first frame has nothing to set apart.

Squares of pixels as channels, and back (`patchify` and `unpatchify` in Wan's vae2_2.py, and pixel shuffle).
"""

from itertools import product

import torch
from einops import rearrange
from torch import Tensor, nn

from wan_vae.model.halo import Halo, Padding
from wan_vae.model.layers import CausalConv3d
from wan_vae.ops.conv3d import accepts_frame_list, can_fuse_upsample, convolve, convolve_upsampled, subpixel_weights
from wan_vae.ops.dispatch import needs_plain_ops
from wan_vae.ops.workspace import Workspace


def patchify(x: Tensor, side: int, workspace: Workspace) -> Tensor:
    """(B, C, T, H, W) -> (B, C side^2, T, H / side, W / side): for each channel its squares' columns, one by one."""
    if side == 1:
        return x
    if needs_plain_ops():
        return rearrange(x, "b c t (h q) (w r) -> b (c r q) t h w", q=side, r=side)
    batch, channels, frames, height, width = x.shape
    patches = workspace.empty((batch, channels * side**2, frames, height // side, width // side), like=x)
    by_place = rearrange(patches, "b (c r q) t h w -> c r q b t h w", r=side, q=side)
    # A place after the other: in one go, PyTorch copies no more than a square's row at a time.
    for channel, column, row in product(range(channels), range(side), range(side)):
        by_place[channel, column, row].copy_(x[:, channel, :, row::side, column::side])
    return patches


def unpatchify(x: Tensor, side: int, workspace: Workspace, *, by_rows: bool = False) -> Tensor:
    """(B, C side^2, T, H, W) -> (B, C, T, side H, side W), the reverse of `patchify`.

    Args:
        x: The patches.
        side: Of a square.
        workspace: Where the result's memory comes from, if no gradients are recorded.
        by_rows: Whether the channels hold the squares' rows one by one, as for `torch.pixel_shuffle`.
    """
    if side == 1:
        return x
    order = "(c q r)" if by_rows else "(c r q)"
    if needs_plain_ops():
        return rearrange(x, f"b {order} t h w -> b c t (h q) (w r)", q=side, r=side)
    batch, channels, frames, height, width = x.shape
    pixels = workspace.empty((batch, channels // side**2, frames, side * height, side * width), like=x)
    by_place = rearrange(x, f"b {order} t h w -> c r q b t h w", r=side, q=side)
    for channel, column, row in product(range(pixels.shape[1]), range(side), range(side)):
        pixels[:, channel, :, row::side, column::side].copy_(by_place[channel, column, row])
    return pixels


def split_first_frame(x: Tensor, halo: Halo) -> tuple[Tensor, Tensor]:
    """Split (B, C, T, H, W) in the clip's first frame, empty if it is not in `x`, and the frames after it."""
    first = 1 if halo.at_start else 0
    return x[:, :, :first], x[:, :, first:]


class StridedConv2d(nn.Conv2d):
    """A 3x3 convolution of every other pixel, with a row below and a column to the right.

    (B, C, T, H, W) -> (B, C, T, H/2, W/2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        pieces, zeros = halo.pad(self, x, Padding(bottom=1, right=1))
        return convolve(
            pieces, self.weight.unsqueeze(2), self.bias, halo.workspace, zero_padding=zeros, stride=(1, 2, 2)
        )


class TemporalStridedConv3d(nn.Conv3d):
    """A convolution of every other window of three frames.

    (B, C, T, H, W) -> (B, C, (T - 1) / 2, H, W) at the clip's start, and T / 2 frames after it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        stride = (2, 1, 1)
        # Before the clip's start lies nothing, not even zeros: the first window is frames 0, 1 and 2.
        pieces, _ = halo.pad(self, x, Padding(before=1), apart=accepts_frame_list(x, self.weight, stride))
        if sum(piece.shape[2] for piece in pieces) < self.kernel_size[0]:
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
        # Nothing is joined with what is empty: that would be a copy, and in another order in memory.
        present = [part for part in (first, halved) if part.shape[2] > 0]
        return present[0] if len(present) == 1 else torch.cat([first, halved], dim=2)


class UpsampleConv2d(nn.Conv2d):
    """Every pixel twice in height and width, then a 3x3 convolution: (B, C_in, T, H, W) -> (B, C_out, T, 2H, 2W).

    Among pixels that come in equal pairs, two of three taps in each direction always meet the same value. Their sum
    does the same in 2x2 taps on the small tensor: one set of taps for each of the four places in a pair of pairs, four
    ninths of the operations, and the doubled input never exists.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        reach = Padding(top=1, bottom=1, left=1, right=1)
        (x,), zeros = halo.pad(self, x, reach)
        if can_fuse_upsample(x, self.weight.unsqueeze(2)):
            return convolve_upsampled(x, self.weight.unsqueeze(2), self.bias, halo.workspace, zero_padding=zeros)
        bias = None if self.bias is None else self.bias.repeat(4)
        places = convolve([x], subpixel_weights(self.weight).unsqueeze(2), bias, halo.workspace, zero_padding=zeros)
        batch, _, frames, height, width = places.shape
        # At the upper and left place of a pair the taps look back, at the others ahead: one position further on.
        height, width = height - 1, width - 1
        doubled = halo.workspace.empty((batch, self.out_channels, frames, 2 * height, 2 * width), like=places)
        for place, values in enumerate(places.chunk(4, dim=1)):
            down, right = divmod(place, 2)
            doubled[..., down::2, right::2] = values[..., down : height + down, right : width + right]
        return doubled


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
                x = _in_turn(first, self.time_conv(rest, halo), halo)
        return self.conv(x, halo)


def _in_turn(first: Tensor, pairs: Tensor, halo: Halo) -> Tensor:
    """`first`, and then the two halves of the channels of `pairs` as frames in turn."""
    batch, channels, frames, height, width = pairs.shape
    start = first.shape[2]
    out = halo.workspace.empty((batch, channels // 2, start + 2 * frames, height, width), like=pairs)
    out[:, :, :start] = first
    for place, half in enumerate(pairs.chunk(2, dim=1)):
        out[:, :, start + place :: 2] = half
    return out
