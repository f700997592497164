"""A linear skip around the whole encoder, and one around the whole decoder: H(x) = F(x) + W x.

A latent pixel stands for a block of pixels, 4 frames of 8x8 in Wan2.1. W maps each block to its latents and back, with
weights of its own for a clip's first frame, which has a latent frame to itself. Blocks do not overlap, so streams,
tiles and parts of a picture need nothing of each other here. The network F learns what the linear code misses.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from wan_vae.config import VAEConfig
from wan_vae.ops import needs_plain_ops
from wan_vae.ops.memory_estimator import representative_passes

_BLOCKS = "b c (t f) (h p) (w q) -> b t h w (c f p q)"
_BAND_VALUES = 2**20  # of the blocks that are copied at a time, small enough for a CPU's cache


class LinearSkip(nn.Module):
    """The linear map of one direction.

    Args:
        config: The architecture.
        encodes: Whether from pixels (B, c, T, H, W) to latents (B, z, t, h, w); otherwise back.
    """

    def __init__(self, config: VAEConfig, *, encodes: bool) -> None:
        super().__init__()
        self.encodes = encodes
        self.frames = config.temporal_compression
        self.side = config.spatial_compression * (1 if encodes else config.output_upscale)
        self.first = self._map(config, 1)
        self.later = self._map(config, self.frames)

    def _map(self, config: VAEConfig, frames: int) -> nn.Linear:
        sizes = config.image_channels * frames * self.side**2, config.latent_channels
        return nn.Linear(*(sizes if self.encodes else sizes[::-1]))

    def add(self, result: Tensor, x: Tensor, *, at_start: bool) -> Tensor:
        """Return the network's `result` for `x` with the skip added, in the memory of `result` without gradients.

        Args:
            result: Latents, maybe with further channels behind them, which stay as they are; or pixels.
            x: The pixels, or the latents, that the network was given.
            at_start: Whether the first frame is the clip's first.
        """
        first = 1 if at_start else 0
        if needs_plain_ops():
            ends = (self.first, x[:, :, :first]), (self.later, x[:, :, first:])
            added = torch.cat([self._out_of_place(*end) for end in ends if end[1].shape[2] > 0], dim=2)
            head, tail = result[:, : added.shape[1]], result[:, added.shape[1] :]
            return torch.cat([head + added, tail], dim=1) if tail.shape[1] else head + added
        pixels, latents = (x, result[:, : self.later.out_features]) if self.encodes else (result, x)
        for index in range(latents.shape[2]):
            start, stop = (first + (place - first) * self.frames for place in (index, index + 1))
            linear = self.first if index < first else self.later
            self._add_in_place(linear, pixels[:, :, max(0, start) : stop], latents[:, :, index : index + 1])
        return result

    def blocks_of(self, pixels: Tensor, frames: int) -> Tensor:
        """Cut pixels (B, c, T, H, W) to blocks of so many frames: (B, t, h, w, c * frames * side * side)."""
        return rearrange(pixels, _BLOCKS, f=frames, p=self.side, q=self.side)

    def _out_of_place(self, linear: nn.Linear, x: Tensor) -> Tensor:
        frames = 1 if linear is self.first else self.frames
        if self.encodes:
            return rearrange(linear(self.blocks_of(x, frames)), "b t h w z -> b z t h w")
        inverse = " -> ".join(reversed(_BLOCKS.split(" -> ")))
        return rearrange(linear(rearrange(x, "b z t h w -> b t h w z")), inverse, f=frames, p=self.side, q=self.side)

    def _add_in_place(self, linear: nn.Linear, pixels: Tensor, latents: Tensor) -> None:
        """Add to one latent frame (B, z, 1, h, w) the code of its pixels (B, c, f, H, W), or to the pixels its code."""
        batch, channels, frames, _, width = pixels.shape
        rows = max(1, _BAND_VALUES // (batch * channels * frames * self.side * width))
        blocks = rearrange(pixels, "b c f (h p) (w q) -> b h w c f p q", p=self.side, q=self.side)  # a view
        for top in representative_passes(range(0, latents.shape[3], rows), pixels):
            block = blocks[:, top : top + rows]
            code = latents[:, :, 0, top : top + rows].permute(0, 2, 3, 1)
            if self.encodes:
                code += linear(block.flatten(3))
            else:
                block += linear(code).view(block.shape)
