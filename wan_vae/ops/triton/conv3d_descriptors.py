"""A convolution as a matrix product whose factors Hopper's copy engine fetches, as boxes of the tensors it is told of.

The engine needs no addresses and no masks from the threads, and puts zeros where a box lies outside of a tensor: the
padding costs nothing. In return a program's pixels must be a run in memory: of one row, or, if the frames bring their
zeros along, of a whole frame whose rows follow each other without a gap; the last pixels of every row are then computed
for nothing, and not stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan_vae.ops.triton.common import OPTIONS, Tile, finish, jit, pixel_strides

# Of addresses and of all strides, in bytes.
_ALIGNMENT = 16
_BYTES = 2
_HOPPER = (9, 0)


def can_fetch(x: Tensor, weight: Tensor) -> bool:
    """Whether there is a copy engine for a convolution's input and weight: 16 bits, aligned, from `pack_weight`."""
    steps = (*pixel_strides(x), *weight.shape[:2])
    places = (x.data_ptr(), weight.data_ptr(), *(_BYTES * step for step in steps))
    return (
        (not x.is_cuda or torch.cuda.get_device_capability(x.device) >= _HOPPER)
        and x.element_size() == _BYTES
        and weight.permute(2, 3, 4, 1, 0).is_contiguous()
        and all(place % _ALIGNMENT == 0 for place in places)
    )


def is_one_run(x: Tensor, spatial_padding: tuple[int, int]) -> bool:
    """Whether a frame of the input needs no zeros around it, and its pixels are one run in memory."""
    return spatial_padding == (0, 0) and x.stride(3) == x.shape[4] * x.stride(4)


def use_of_tiles(x: Tensor, shape: tuple[int, ...], spatial_padding: tuple[int, int], tile: Tile) -> float:
    """Return which share of the pixels that the tiles compute belongs to a result of this shape."""
    height, width = shape[3:]
    run = _run(x, shape) if is_one_run(x, spatial_padding) else width
    wanted = height * width if is_one_run(x, spatial_padding) else width
    return wanted / (triton.cdiv(run, tile.width) * tile.width) if run > 0 else 1.0


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    spatial_padding: tuple[int, int],
    tile: Tile,
) -> None:
    """Write a convolution to `out`; everything as for `wan_vae.ops.triton.conv3d.candidates`.

    The tile has one row. Where `x` and `weight` pass `can_fetch`, any sizes will do.
    """
    # Older releases of Triton have no descriptors.
    from triton.tools.tensor_descriptor import TensorDescriptor

    out_channels, in_channels, kernel_frames, kernel_height, kernel_width = weight.shape
    batch, _, frames, height, width = out.shape
    x_height, x_width = x.shape[3:]
    one_run = is_one_run(x, spatial_padding)
    sizes = [x.shape[0], x.shape[2], *((1, x_height * x_width) if one_run else (x_height, x_width)), in_channels]
    pixels = TensorDescriptor(x, sizes, _strides(x, sizes), [1, 1, 1, tile.width, tile.depth])
    packed = weight.permute(2, 3, 4, 1, 0).flatten(0, 2)
    weights = [
        TensorDescriptor.from_tensor(packed, [1, tile.depth, channels])
        for channels in (tile.channels, tile.more_channels or tile.channels)
    ]
    residual_strides = (0, 0, 0, 0) if residual is None else pixel_strides(residual)
    channel_tiles = triton.cdiv(out_channels, tile.channels + tile.more_channels)
    run = _run(x, out.shape) if one_run else width
    pixel_tiles = triton.cdiv(run, tile.width) * (1 if one_run else height)
    _convolve[(channel_tiles * pixel_tiles * frames * batch,)](
        pixels,
        *weights,
        bias,
        residual,
        out,
        frames,
        height,
        width,
        x_width,
        run,
        *residual_strides,
        *pixel_strides(out),
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_frames=kernel_frames,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        rows_of_zeros=spatial_padding[0],
        columns_of_zeros=spatial_padding[1],
        one_run=one_run,
        block_pixels=tile.width,
        block_channels=tile.channels,
        more_channels=tile.more_channels,
        block_depth=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **OPTIONS,
    )


def _run(x: Tensor, shape: tuple[int, ...]) -> int:
    """Return how many pixels of `x` there are from the first to the last that belongs to a frame of the result."""
    return (shape[3] - 1) * x.shape[4] + shape[4]


def _strides(x: Tensor, sizes: list[int]) -> list[int]:
    """Return the strides of `x` for a descriptor: where there is nothing to step to, as if all lay close together."""
    strides = [1]
    # Of one run, the columns are those of all rows: their stride counts even if each row has but one.
    for size, dimension, inner_size in zip(sizes[3::-1], (4, 3, 2, 0), sizes[:0:-1], strict=True):
        strides.append(x.stride(dimension) if size > 1 else strides[-1] * inner_size)
    return strides[::-1]


@jit(any_size=["frames", "height", "width", "x_width", "run"])
def _convolve(
    pixels: tl.tensor,
    weights: tl.tensor,
    other_weights: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    frames: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    x_width: tl.tensor,
    run: tl.tensor,
    residual_stride_batch: tl.tensor,
    residual_stride_frame: tl.tensor,
    residual_stride_row: tl.tensor,
    residual_stride_column: tl.tensor,
    out_stride_batch: tl.tensor,
    out_stride_frame: tl.tensor,
    out_stride_row: tl.tensor,
    out_stride_column: tl.tensor,
    in_channels: tl.constexpr,
    out_channels: tl.constexpr,
    kernel_frames: tl.constexpr,
    kernel_height: tl.constexpr,
    kernel_width: tl.constexpr,
    rows_of_zeros: tl.constexpr,
    columns_of_zeros: tl.constexpr,
    one_run: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
    more_channels: tl.constexpr,
    block_depth: tl.constexpr,
) -> None:
    all_channels: tl.constexpr = block_channels + more_channels
    channel_tiles: tl.constexpr = (out_channels + all_channels - 1) // all_channels
    # As in the other kernel: programs that run at the same time read the same pixels.
    rest = tl.program_id(0)
    first_channel = (rest % channel_tiles) * all_channels
    rest = rest // channel_tiles
    frame = rest % frames
    rest = rest // frames
    tiles_across = tl.cdiv(run, block_pixels)
    first_pixel = (rest % tiles_across) * block_pixels
    rest = rest // tiles_across
    if one_run:
        only_row = 0
        batch = rest
    else:
        only_row = rest % height
        batch = rest // height

    total = tl.zeros((block_pixels, block_channels), tl.float32)
    if more_channels > 0:
        other_total = tl.zeros((block_pixels, more_channels), tl.float32)
    taps: tl.constexpr = kernel_frames * kernel_height * kernel_width
    parts: tl.constexpr = (in_channels + block_depth - 1) // block_depth
    for step in range(taps * parts):
        tap = step // parts
        first_depth = (step % parts) * block_depth
        later = tap // (kernel_height * kernel_width)
        down = (tap // kernel_width) % kernel_height
        right = tap % kernel_width
        if one_run:
            corner = first_pixel + down * x_width + right
            box = pixels.load([batch, frame + later, 0, corner, first_depth])
        else:
            column = first_pixel + right - columns_of_zeros
            box = pixels.load([batch, frame + later, only_row + down - rows_of_zeros, column, first_depth])
        box = box.reshape(block_pixels, block_depth)
        tap_weights = weights.load([tap, first_depth, first_channel]).reshape(block_depth, block_channels)
        total = tl.dot(box, tap_weights, total)
        if more_channels > 0:
            tap_weights = other_weights.load([tap, first_depth, first_channel + block_channels])
            other_total = tl.dot(box, tap_weights.reshape(block_depth, more_channels), other_total)

    pixel = first_pixel + tl.arange(0, block_pixels)
    if one_run:
        row = pixel // x_width
        column = pixel % x_width
        inside = (column < width) & (row < height)
    else:
        row = only_row
        column = pixel
        inside = column < width
    wide_row = row.to(tl.int64)
    wide_column = column.to(tl.int64)
    wide_frame = frame.to(tl.int64)
    wide_batch = batch.to(tl.int64)
    out += wide_batch * out_stride_batch + wide_frame * out_stride_frame
    out_offset = wide_row * out_stride_row + wide_column * out_stride_column
    residual_offset = wide_row * residual_stride_row + wide_column * residual_stride_column
    if residual is not None:
        residual += wide_batch * residual_stride_batch + wide_frame * residual_stride_frame
    finish(total, bias, residual, out, residual_offset, out_offset, inside, first_channel, out_channels, block_channels)
    if more_channels > 0:
        first_other = first_channel + block_channels
        finish(
            other_total,
            bias,
            residual,
            out,
            residual_offset,
            out_offset,
            inside,
            first_other,
            out_channels,
            more_channels,
        )
