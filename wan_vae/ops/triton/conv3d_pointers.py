"""Convolution as an implicit matrix product, whose pixels are loaded by pointer.

The sum runs over the taps of the kernel and the input channels. For each tap, the shifted pixels of a tile make a
matrix (pixels, input channels), which the tensor cores multiply by the tap's (input channels, output channels). It
supports all memory layouts of pixels, paddings and channel counts.
"""

import triton
import triton.language as tl
from torch import Tensor

from wan_vae.ops.triton.common import Tile, finish, jit, pixel_strides, weight_sizes

_LARGEST_OFFSET = 2**31


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    spatial_padding: tuple[int, int],
    tile: Tile,
) -> None:
    """Write a convolution to `out`; see `wan_vae.ops.triton.conv3d.candidates` for the arguments."""
    out_channels, _, _, kernel_height, kernel_width = weight.shape
    batch, _, frames, height, width = out.shape
    strides = [(0, 0, 0, 0) if each is None else pixel_strides(each) for each in (x, residual, out)]
    # Within a tile and its taps, and in the weight, offsets have 32 bits, which take half the registers.
    assert all((tile.height + kernel_height) * each[2] + tile.width * each[3] < _LARGEST_OFFSET for each in strides)
    assert weight.numel() < _LARGEST_OFFSET
    assert kernel_height * kernel_width < 32
    channel_tiles = triton.cdiv(out_channels, tile.channels + tile.more_channels)
    pixel_tiles = triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width)
    _convolve[(channel_tiles * pixel_tiles * frames * batch,)](
        *(x, weight, bias, residual, out),
        *(frames, height, width, *x.shape[3:]),
        *(*strides[0], *strides[1], *strides[2], *weight.stride()),
        **weight_sizes(weight, spatial_padding),
        tile_height=tile.height,
        tile_width=tile.width,
        **tile.options,
    )


@jit(any_size=["frames", "height", "width", "x_height", "x_width"])
def _convolve(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, residual: tl.tensor, out: tl.tensor,
    frames: tl.tensor, height: tl.tensor, width: tl.tensor, x_height: tl.tensor, x_width: tl.tensor,
    x_stride_batch: tl.tensor, x_stride_frame: tl.tensor, x_stride_row: tl.tensor, x_stride_column: tl.tensor,
    residual_stride_batch: tl.tensor, residual_stride_frame: tl.tensor, residual_stride_row: tl.tensor,
    residual_stride_column: tl.tensor,
    out_stride_batch: tl.tensor, out_stride_frame: tl.tensor, out_stride_row: tl.tensor, out_stride_column: tl.tensor,
    weight_stride_out: tl.tensor, weight_stride_in: tl.tensor, weight_stride_frame: tl.tensor,
    weight_stride_row: tl.tensor, weight_stride_column: tl.tensor,
    in_channels: tl.constexpr, out_channels: tl.constexpr, kernel_frames: tl.constexpr, kernel_height: tl.constexpr,
    kernel_width: tl.constexpr,
    rows_of_zeros: tl.constexpr, columns_of_zeros: tl.constexpr, tile_height: tl.constexpr, tile_width: tl.constexpr,
    block_channels: tl.constexpr, more_channels: tl.constexpr, block_depth: tl.constexpr,
) -> None:  # fmt: skip
    all_channels: tl.constexpr = block_channels + more_channels
    channel_tiles: tl.constexpr = (out_channels + all_channels - 1) // all_channels
    # Concurrent programs should read the same pixels: parts of the channels are consecutive, then frames, whose taps
    # overlap, then tiles of a frame.
    rest = tl.program_id(0)
    first_channel = (rest % channel_tiles) * all_channels
    rest = rest // channel_tiles
    frame = (rest % frames).to(tl.int64)
    rest = rest // frames
    tiles_across = tl.cdiv(width, tile_width)
    first_column = (rest % tiles_across) * tile_width
    rest = rest // tiles_across
    tiles_down = tl.cdiv(height, tile_height)
    first_row = (rest % tiles_down) * tile_height
    batch = (rest // tiles_down).to(tl.int64)

    pixel = tl.arange(0, tile_height * tile_width)
    row_in_tile = pixel // tile_width
    column_in_tile = pixel % tile_width
    row = first_row + row_in_tile
    column = first_column + column_in_tile
    inside = (row < height) & (column < width)
    # One bit per tap: whether it meets a pixel of the frame. In the loop, a shift replaces the comparisons.
    meets = tl.zeros((tile_height * tile_width,), tl.int32)
    for down_tap in tl.static_range(kernel_height):
        for right_tap in tl.static_range(kernel_width):
            x_row = row + (down_tap - rows_of_zeros)
            x_column = column + (right_tap - columns_of_zeros)
            in_frame = (x_row >= 0) & (x_row < x_height) & (x_column >= 0) & (x_column < x_width) & inside
            meets |= in_frame.to(tl.int32) << (down_tap * kernel_width + right_tap)

    depth = tl.arange(0, block_depth)
    channel = first_channel + tl.arange(0, block_channels)
    x += batch * x_stride_batch + frame * x_stride_frame
    x += (first_row - rows_of_zeros).to(tl.int64) * x_stride_row
    x += (first_column - columns_of_zeros).to(tl.int64) * x_stride_column
    x_places = (row_in_tile * x_stride_row + column_in_tile * x_stride_column)[:, None] + depth[None, :]
    weight_places = depth[:, None] * weight_stride_in + channel[None, :] * weight_stride_out
    total = tl.zeros((tile_height * tile_width, block_channels), tl.float32)
    if more_channels > 0:
        other_channel = first_channel + block_channels + tl.arange(0, more_channels)
        other_places = depth[:, None] * weight_stride_in + other_channel[None, :] * weight_stride_out
        other_total = tl.zeros((tile_height * tile_width, more_channels), tl.float32)
    else:
        other_total = total

    # The taps of a frame are innermost: they read nearly the same pixels, which stay in the first-level cache.
    taps_in_frame: tl.constexpr = kernel_height * kernel_width
    parts: tl.constexpr = (in_channels + block_depth - 1) // block_depth
    for step in range(kernel_frames * parts * taps_in_frame):
        tap = step % taps_in_frame
        part = step // taps_in_frame
        first_depth = (part % parts) * block_depth
        later = part // parts
        down = tap // kernel_width
        right = tap % kernel_width
        x_tap = x + later.to(tl.int64) * x_stride_frame + (down * x_stride_row + right * x_stride_column + first_depth)
        weight_tap = weight + (
            later * weight_stride_frame
            + down * weight_stride_row
            + right * weight_stride_column
            + first_depth * weight_stride_in
        )
        x_there = (((meets >> tap) & 1) != 0)[:, None]
        weight_there = (channel < out_channels)[None, :]
        if in_channels % block_depth != 0:
            known = first_depth + depth < in_channels
            x_there = x_there & known[None, :]
            weight_there = weight_there & known[:, None]
        pixels = tl.load(x_tap + x_places, mask=x_there, other=0.0, cache_modifier=".ca")
        weights = tl.load(weight_tap + weight_places, mask=weight_there, other=0.0)
        total = tl.dot(pixels, weights, total, input_precision="ieee")
        if more_channels > 0:
            other_there = (other_channel < out_channels)[None, :]
            if in_channels % block_depth != 0:
                other_there = other_there & known[:, None]
            other_weights = tl.load(weight_tap + other_places, mask=other_there, other=0.0)
            other_total = tl.dot(pixels, other_weights, other_total, input_precision="ieee")

    out += batch * out_stride_batch + frame * out_stride_frame
    out += first_row.to(tl.int64) * out_stride_row + first_column.to(tl.int64) * out_stride_column
    out_offset = row_in_tile * out_stride_row + column_in_tile * out_stride_column
    residual_offset = row_in_tile * residual_stride_row + column_in_tile * residual_stride_column
    if residual is not None:
        residual += batch * residual_stride_batch + frame * residual_stride_frame
        residual += first_row.to(tl.int64) * residual_stride_row + first_column.to(tl.int64) * residual_stride_column
    finish(
        total, other_total, bias, residual, out, residual_offset, out_offset, inside, first_channel, out_channels,
        block_channels, more_channels,
    )  # fmt: skip
