"""Causal convolution on the tensor cores, with bias and residual added before the one rounding."""

from collections.abc import Callable

import torch
from torch import Tensor

from wan_vae.ops.triton import conv3d_descriptors as triton_conv3d_descriptors
from wan_vae.ops.triton import conv3d_pointers as triton_conv3d_pointers
from wan_vae.ops.triton.common import Tile, channels_are_side_by_side, on_device_of, plausible_tiles

# The share of the computed pixels that must be somebody's, for a kernel whose tiles do not fit every frame.
_LEAST_USE = 0.75


def pack_weight(weight: Tensor) -> Tensor:
    """Return a weight (C_out, C_in, kT, kH, kW) with the same values, stored as (kT, kH, kW, C_in, C_out).

    That is how the kernels read it: output channels side by side. To everybody else it is the weight it was.
    """
    return weight.detach().permute(2, 3, 4, 1, 0).contiguous().permute(4, 3, 0, 1, 2)


def candidates(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    spatial_padding: tuple[int, int],
) -> dict[str, Callable[[], Tensor]]:
    """Return every way to compute a convolution with stride 1 that may be the fastest, by name.

    Each returns (B, C_out, T - kT + 1, H + 2 * rows - kH + 1, W + 2 * columns - kW + 1), of the dtype of `x`, with bias
    and residual added before the one rounding. See `wan_vae.ops.autotune` for how one is chosen.

    Args:
        x: (B, C_in, T, H, W), float32, float16 or bfloat16, channels side by side; the frames that lie before the first
            output frame are among them. Fastest if the zeros around every frame are, too.
        weight: (C_out, C_in, kT, kH, kW), of the dtype of `x`. Any strides work; best is what `pack_weight` returns.
        bias: (C_out,), of any floating dtype, or None.
        residual: Of the shape of the result and any floating dtype, channels side by side, or None; may be `out`.
        out: Where the result goes, channels side by side; may be a part of a larger tensor, but not of `x`. None
            allocates it.
        spatial_padding: Rows of zeros above and below every frame, and columns of zeros left and right of it.
    """
    shape = _shape_of_result(x, weight, spatial_padding)
    assert x.shape[1] == weight.shape[1]
    assert x.dtype == weight.dtype
    assert channels_are_side_by_side(x)
    assert bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous())
    assert residual is None or (residual.shape == shape and channels_are_side_by_side(residual))
    assert out is None or (out.shape == shape and out.dtype == x.dtype and channels_are_side_by_side(out))
    ways: dict[str, Callable[[], Tensor]] = {}

    def add(kernel: str, convolve: Callable[..., None], tile: Tile) -> None:
        def compute() -> Tensor:
            place = out
            if place is None:
                place = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
            if place.numel() > 0:
                with on_device_of(x):
                    convolve(x, weight, bias, residual, place, spatial_padding, tile)
            return place

        ways[f"{kernel} {tile}"] = compute

    out_channels, in_channels = weight.shape[:2]
    if triton_conv3d_descriptors.can_fetch(x, weight):
        for tile in plausible_tiles(in_channels, out_channels, x.dtype, (1, 128), (1, 256)):
            if triton_conv3d_descriptors.use_of_tiles(x, shape, spatial_padding, tile) >= _LEAST_USE:
                add("descriptors", triton_conv3d_descriptors.convolve, tile)
    for tile in plausible_tiles(in_channels, out_channels, x.dtype, (8, 16), (16, 16)):
        add("pointers", triton_conv3d_pointers.convolve, tile)
    return ways


def _shape_of_result(x: Tensor, weight: Tensor, spatial_padding: tuple[int, int]) -> tuple[int, ...]:
    rows, columns = spatial_padding
    around = zip(x.shape[2:], (0, 2 * rows, 2 * columns), weight.shape[2:], strict=True)
    return x.shape[0], weight.shape[0], *(size + zeros - taps + 1 for size, zeros, taps in around)
