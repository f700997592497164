"""Convolution as an implicit matrix product, whose factors are loaded by Hopper's copy engine (TMA).

The engine loads boxes of a tensor by its descriptor, without addresses and masks in the threads, and returns zeros
outside of the tensor: padding costs nothing. In return, a program's pixels must be contiguous in memory: part of one
row, or, if the frames already have their zero padding, part of a frame whose rows follow without a gap. The last pixels
of every row are then computed in vain and not stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan_vae.ops.triton.common import Tile, finish, jit, pixel_strides, weight_sizes

# Bytes: of addresses and of all strides.
_ALIGNMENT = 16
# Bytes of a value.
_BYTES = 2
_HOPPER = (9, 0)


def can_fetch(x: Tensor, weight: Tensor) -> bool:
    """Whether TMA can load an input and a weight: on Hopper, of 16 bits, aligned, packed by `pack_weight`."""
    steps = (*pixel_strides(x), *weight.shape[:2])
    multiples = (x.data_ptr(), weight.data_ptr(), *(_BYTES * step for step in steps))
    return (
        (not x.is_cuda or torch.cuda.get_device_capability(x.device) >= _HOPPER)
        and x.element_size() == _BYTES
        and weight.permute(2, 3, 4, 1, 0).is_contiguous()
        and all(value % _ALIGNMENT == 0 for value in multiples)
    )


def is_one_run(x: Tensor, spatial_padding: tuple[int, int]) -> bool:
    """Whether a frame of the input needs no zero padding, and its pixels are contiguous in memory."""
    return spatial_padding == (0, 0) and x.stride(3) == x.shape[4] * x.stride(4)


def tile_efficiency(x: Tensor, shape: tuple[int, ...], spatial_padding: tuple[int, int], tile: Tile) -> float:
    """Return the fraction of the computed pixels that belong to a result of this shape."""
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
    """Write a convolution to `out`; see `wan_vae.ops.triton.conv3d.candidates` for the arguments.

    The tile has one row, and `x` and `weight` are accepted by `can_fetch`.
    """
    # Older releases of Triton have no descriptors.
    from triton.tools.tensor_descriptor import TensorDescriptor

    out_channels, in_channels = weight.shape[:2]
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
        *(pixels, *weights, bias, residual, out),
        *(frames, height, width, x_width, run),
        *(*residual_strides, *pixel_strides(out)),
        **weight_sizes(weight, spatial_padding),
        one_run=one_run,
        block_pixels=tile.width,
        **tile.options,
    )


def _run(x: Tensor, shape: tuple[int, ...]) -> int:
    """Return the pixels of `x` from the first to the last that belong to a frame of the result."""
    return (shape[3] - 1) * x.shape[4] + shape[4]


def _strides(x: Tensor, sizes: list[int]) -> list[int]:
    """Return the strides of `x` for a descriptor: those of dimensions of size 1 as if `x` were contiguous."""
    strides = [1]
    # The columns of one run are those of all rows: their stride matters even if each row has only one.
    for size, dimension, inner_size in zip(sizes[3::-1], (4, 3, 2, 0), sizes[:0:-1], strict=True):
        strides.append(x.stride(dimension) if size > 1 else strides[-1] * inner_size)
    return strides[::-1]


@jit(any_size=["frames", "height", "width", "x_width", "run"])
def _convolve(
    pixels: tl.tensor, weights: tl.tensor, other_weights: tl.tensor, bias: tl.tensor, residual: tl.tensor,
    out: tl.tensor,
    frames: tl.tensor, height: tl.tensor, width: tl.tensor, x_width: tl.tensor, run: tl.tensor,
    residual_stride_batch: tl.tensor, residual_stride_frame: tl.tensor, residual_stride_row: tl.tensor,
    residual_stride_column: tl.tensor,
    out_stride_batch: tl.tensor, out_stride_frame: tl.tensor, out_stride_row: tl.tensor, out_stride_column: tl.tensor,
    in_channels: tl.constexpr, out_channels: tl.constexpr, kernel_frames: tl.constexpr, kernel_height: tl.constexpr,
    kernel_width: tl.constexpr,
    rows_of_zeros: tl.constexpr, columns_of_zeros: tl.constexpr, one_run: tl.constexpr, block_pixels: tl.constexpr,
    block_channels: tl.constexpr, more_channels: tl.constexpr, block_depth: tl.constexpr,
) -> None:  # fmt: skip
    all_channels: tl.constexpr = block_channels + more_channels
    channel_tiles: tl.constexpr = (out_channels + all_channels - 1) // all_channels
    # As in conv3d_pointers.py, concurrent programs read the same pixels.
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
    other_total = tl.zeros((block_pixels, more_channels), tl.float32) if more_channels > 0 else total
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
    else:
        row = only_row
        column = pixel
    inside = (column < width) & (row < height)
    row = row.to(tl.int64)
    column = column.to(tl.int64)
    frame = frame.to(tl.int64)
    batch = batch.to(tl.int64)
    out += batch * out_stride_batch + frame * out_stride_frame
    out_offset = row * out_stride_row + column * out_stride_column
    residual_offset = row * residual_stride_row + column * residual_stride_column
    if residual is not None:
        residual += batch * residual_stride_batch + frame * residual_stride_frame
    finish(
        total, other_total, bias, residual, out, residual_offset, out_offset, inside, first_channel, out_channels,
        block_channels, more_channels,
    )  # fmt: skip
