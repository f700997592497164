"""The networks of tiny autoencoders (TAEHV): two-dimensional convolutions, and blocks that remember one frame.

Structure and names of weights are those of madebyollin's taehv.py. A block's memory is its own input one frame earlier,
nothing else links frames, so that a clip can pass in pieces of any length.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.arguments import check_flag, shown
from wan_vae.config import MODEL_OF_CHANNELS
from wan_vae.errors import UserError
from wan_vae.ops.precision import Conv2d

DecoderKind: TypeAlias = Literal["base", "super"]
Memory: TypeAlias = dict[int, Tensor]
"""The last frame (B, 1, C, H, W) that went into each memory block, by the block's index; empty before a clip."""

FRAMES_PER_LATENT = 4
_ENCODER_WIDTH = 64
_DECODER_WIDTHS = {"base": (256, 128, 64, 64), "super": (512, 256, 128, 64)}
_BLOCKS = 3  # per resolution


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """The structure of a tiny autoencoder.

    Attributes:
        latent_channels: 16 for the latents of Wan2.1 and its kin, 48 for those of Wan2.2.
        decoder: "base", or "super" for the larger decoder of taew2_2_super.
        raw: Whether the network takes and gives raw latents, as that of lighttaew2_1, rather than normalized ones. The
            weights do not tell.

    Raises:
        UserError: A value is none of these.
    """

    latent_channels: int = 16
    decoder: DecoderKind = "base"
    raw: bool = False

    def __post_init__(self) -> None:
        if self.latent_channels not in MODEL_OF_CHANNELS:
            known = " or ".join(f"{channels} ({name})" for channels, name in MODEL_OF_CHANNELS.items())
            raise UserError(f"latent_channels is {shown(self.latent_channels)}; Wan's latents have {known}.")
        if self.decoder not in get_args(DecoderKind):
            raise UserError(f"decoder is {shown(self.decoder)}; it must be {' or '.join(get_args(DecoderKind))}.")
        check_flag("raw", self.raw)

    @property
    def patch_size(self) -> int:
        """Side of the square patches of pixels that are moved to the channels."""
        return 2 if self.latent_channels == 48 else 1

    @property
    def pixel_channels(self) -> int:
        """Channels of a frame whose patches are moved to the channels."""
        return 3 * self.patch_size**2


class MemoryBlock(nn.Module):
    """A residual block that also sees its input one frame earlier: (N, C, H, W) and (N, C, H, W) -> (N, C, H, W).

    That of the super decoder has a 7x7 depthwise convolution and a pointwise bottleneck that is wide inside.
    """

    def __init__(self, width: int, kind: DecoderKind = "base") -> None:
        super().__init__()
        self.is_base = kind == "base"
        if self.is_base:
            layers = [_conv(2 * width, width), nn.ReLU(True), _conv(width, width), nn.ReLU(True), _conv(width, width)]
        else:
            spatial = Conv2d(2 * width, 2 * width, 7, padding=3, groups=2 * width, bias=False)
            layers = [spatial, Conv2d(2 * width, 4 * width, 1), nn.ReLU(True)]
            layers.append(Conv2d(4 * width, width, 1, bias=False))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        y = self.conv(torch.cat([x, before], dim=1)) + x
        return y.relu_() if self.is_base else y


class TimePool(nn.Module):
    """Mixes each `stride` frames into one: (stride N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = Conv2d(stride * width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        frames, channels, height, width = x.shape
        pooled: Tensor = self.conv(x.reshape(frames // self.stride, self.stride * channels, height, width))
        return pooled


class TimeGrow(nn.Module):
    """Makes `stride` frames of each: (N, C, H, W) -> (stride N, C, H, W)."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = Conv2d(width, stride * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        frames, channels, height, width = x.shape
        grown: Tensor = self.conv(x).reshape(frames * self.stride, channels, height, width)
        return grown


class EnlargingConv2d(Conv2d):
    """Enlarges by nearest neighbors, and convolves: (N, C, H, W) -> (N, C', 2 H, 2 W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class _Saturate(nn.Module):
    """Keeps latents in (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def tiny_encoder(config: TinyConfig) -> nn.Sequential:
    """Build the encoder: frames with values in [0, 1], patches in the channels -> latents, one for four frames."""
    width = _ENCODER_WIDTH
    layers = [_conv(config.pixel_channels, width), nn.ReLU(True)]
    for time_stride in (2, 2, 1):
        layers += [TimePool(width, time_stride), _conv(width, width, stride=2, bias=False)]
        layers += [MemoryBlock(width) for _ in range(_BLOCKS)]
    return nn.Sequential(*layers, _conv(width, config.latent_channels))


def tiny_decoder(config: TinyConfig) -> nn.Sequential:
    """Build the decoder: latents -> four frames each, patches in the channels, about [0, 1]."""
    kind, (first, *widths) = config.decoder, _DECODER_WIDTHS[config.decoder]
    is_base, width = kind == "base", first
    layers: list[nn.Module]
    if is_base:
        layers = [_Saturate(), _conv(config.latent_channels, width), nn.ReLU(True)]
    else:
        layers = [Conv2d(config.latent_channels, width, 1, bias=False)]
    for time_stride, narrower in zip((1, 2, 2), widths, strict=True):
        layers += [MemoryBlock(width, kind) for _ in range(_BLOCKS)]
        if is_base:
            # Upstream enlarges where the Identity keeps the place: pointwise convolutions and nearest neighbors
            # commute, and small pictures are faster.
            enlarging = EnlargingConv2d(width, narrower, 3, padding=1, bias=False)
            layers += [nn.Identity(), TimeGrow(width, time_stride), enlarging]
        else:
            layers += [_conv(width, 4 * narrower), nn.ReLU(True), nn.PixelShuffle(2), TimeGrow(narrower, time_stride)]
        width = narrower
    if is_base:
        layers.append(nn.ReLU(True))
    return nn.Sequential(*layers, _conv(width, config.pixel_channels))


def run_tiny(network: nn.Sequential, x: Tensor, memory: Memory) -> Tensor:
    """Pass the next frames of a clip: (B, T, C, H, W) -> (B, T', C', H', W').

    Args:
        network: An encoder, which takes multiples of four frames, or a decoder.
        x: The frames.
        memory: That of the frames before; it is updated.
    """
    batch = x.shape[0]
    x = x.flatten(0, 1)
    blocks = [index for index, layer in enumerate(network) if isinstance(layer, MemoryBlock)]
    # Pictures are the largest outside the memory blocks, where nothing links frames but the pooling of the first two.
    x = _by_frames(network[: blocks[0]], x, together=2)
    for index in range(blocks[0], blocks[-1] + 1):
        layer = network[index]
        if isinstance(layer, MemoryBlock):
            frames = x.reshape(batch, -1, *x.shape[1:])
            first = memory[index] if index in memory else torch.zeros_like(frames[:, :1])
            memory[index] = frames[:, -1:].clone()  # a view would keep all frames
            x = layer(x, torch.cat([first, frames[:, :-1]], dim=1).flatten(0, 1))
        else:
            x = layer(x)
    x = _by_frames(network[blocks[-1] + 1 :], x, together=1)
    return x.reshape(batch, -1, *x.shape[1:])


def _by_frames(layers: nn.Sequential, x: Tensor, *, together: int) -> Tensor:
    results = []
    for frames in torch.split(x, together):
        for index, layer in enumerate(layers):
            frames = layer(frames)
            if isinstance(layer, TimeGrow):
                frames = _by_frames(layers[index + 1 :], frames, together=1)
                break
        results.append(frames)
    return torch.cat(results)


def _conv(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)
