"""The Triton convolutions for an input: kernels and tile sizes, with bias and residual added before one rounding."""

from collections.abc import Callable

import torch
from torch import Tensor

from wan_vae.ops.triton import conv3d_descriptors, conv3d_pointers
from wan_vae.ops.triton.common import Tile, has_contiguous_channels, on_device_of, plausible_tiles

# Tiles of the descriptor kernel that waste more of their pixels are not worth measuring.
_MIN_EFFICIENCY = 0.75


def pack_weight(weight: Tensor) -> Tensor:
    """Return a weight (C_out, C_in, kT, kH, kW) with the same values, stored as (kT, kH, kW, C_in, C_out).

    This is the layout that the kernels read fastest.
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
    """Return the kernels that may be the fastest for a convolution with stride 1, by name, for `wan_vae.ops.autotune`.

    Each returns (B, C_out, T - kT + 1, H + 2 * rows - kH + 1, W + 2 * columns - kW + 1), of the dtype of `x`, with bias
    and residual added before the one rounding.

    Args:
        x: (B, C_in, T, H, W), float32, float16 or bfloat16, with contiguous channels and with the frames before the
            first output frame. Fastest if it also has the zero padding of every frame.
        weight: (C_out, C_in, kT, kH, kW), of the dtype of `x`, with any strides; fastest from `pack_weight`.
        bias: (C_out,), of any floating dtype, or None.
        residual: Of the result's shape and any floating dtype, with contiguous channels; may be `out`. Or None.
        out: Receives the result, with contiguous channels; may be a view into a larger tensor, but not overlap `x`.
            None allocates it.
        spatial_padding: Rows of zeros above and below every frame, and columns of zeros left and right of it.
    """
    padding = (0, 2 * spatial_padding[0], 2 * spatial_padding[1])
    sizes = zip(x.shape[2:], padding, weight.shape[2:], strict=True)
    shape = (x.shape[0], weight.shape[0], *(size + zeros - taps + 1 for size, zeros, taps in sizes))
    assert x.shape[1] == weight.shape[1]
    assert x.dtype == weight.dtype
    assert has_contiguous_channels(x)
    assert bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous())
    assert residual is None or (residual.shape == shape and has_contiguous_channels(residual))
    assert out is None or (out.shape == shape and out.dtype == x.dtype and has_contiguous_channels(out))
    found: dict[str, Callable[[], Tensor]] = {}

    def add(kernel: str, convolve: Callable[..., None], tile: Tile) -> None:
        def compute() -> Tensor:
            result = out
            if result is None:
                result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
            if result.numel() > 0:
                with on_device_of(x):
                    convolve(x, weight, bias, residual, result, spatial_padding, tile)
            return result

        found[f"{kernel} {tile}"] = compute

    out_channels, in_channels = weight.shape[:2]
    if conv3d_descriptors.can_fetch(x, weight):
        for tile in plausible_tiles(in_channels, out_channels, x.dtype, (1, 128), (1, 256)):
            if conv3d_descriptors.tile_efficiency(x, shape, spatial_padding, tile) >= _MIN_EFFICIENCY:
                add("descriptors", conv3d_descriptors.convolve, tile)
    for tile in plausible_tiles(in_channels, out_channels, x.dtype, (8, 16), (16, 16)):
        add("pointers", conv3d_pointers.convolve, tile)
    return found
