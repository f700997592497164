"""Squares of pixels as channels, and back (`patchify` and `unpatchify` in Wan's vae2_2.py, and pixel shuffle)."""

from itertools import product

from einops import rearrange
from torch import Tensor

from wan_vae.ops.recording import recorded
from wan_vae.ops.workspace import Workspace


def folded(x: Tensor, side: int, workspace: Workspace) -> Tensor:
    """(B, C, T, H, W) -> (B, C side^2, T, H / side, W / side): for each channel its squares' columns, one by one."""
    if side == 1:
        return x
    if recorded():
        return rearrange(x, "b c t (h q) (w r) -> b (c r q) t h w", q=side, r=side)
    batch, channels, frames, height, width = x.shape
    patches = workspace.empty((batch, channels * side**2, frames, height // side, width // side), like=x)
    by_place = rearrange(patches, "b (c r q) t h w -> c r q b t h w", r=side, q=side)
    # A place after the other: in one go, PyTorch copies no more than a square's row at a time.
    for channel, column, row in product(range(channels), range(side), range(side)):
        by_place[channel, column, row].copy_(x[:, channel, :, row::side, column::side])
    return patches


def unfolded(x: Tensor, side: int, workspace: Workspace, *, by_rows: bool = False) -> Tensor:
    """(B, C side^2, T, H, W) -> (B, C, T, side H, side W), the reverse of `folded`.

    Args:
        x: The patches.
        side: Of a square.
        workspace: Where the result's memory comes from, if no gradients are recorded.
        by_rows: Whether the channels hold the squares' rows one by one, as for `torch.pixel_shuffle`.
    """
    if side == 1:
        return x
    order = "(c q r)" if by_rows else "(c r q)"
    if recorded():
        return rearrange(x, f"b {order} t h w -> b c t (h q) (w r)", q=side, r=side)
    batch, channels, frames, height, width = x.shape
    pixels = workspace.empty((batch, channels // side**2, frames, side * height, side * width), like=x)
    by_place = rearrange(x, f"b {order} t h w -> c r q b t h w", r=side, q=side)
    for channel, column, row in product(range(pixels.shape[1]), range(side), range(side)):
        pixels[:, channel, :, row::side, column::side].copy_(by_place[channel, column, row])
    return pixels
