"""The network: encoder, decoder, and the pointwise convolutions between them and the latents."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from wan_vae.arguments import check_type
from wan_vae.config import VAEConfig
from wan_vae.model.blocks import Blocks, Head, Middle
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d, remove_past
from wan_vae.model.level_shortcuts import AverageShortcut, RepeatShortcut
from wan_vae.model.linear_skip import LinearSkip
from wan_vae.model.resample import Downsample, Upsample, patchify, unpatchify
from wan_vae.model.stages import LocalStage, receptive_radius
from wan_vae.ops.precision import Conv3d


class Encoder(nn.Module):
    """(B, c, T, H, W) -> (B, 2z, t, h, w) (`Encoder3d` in Wan's vae.py and vae2_2.py)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        widths = [config.encoder_width * multiplier for multiplier in (1, *config.width_multipliers)]
        self.conv_in = CausalConv3d(config.input_channels, widths[0])
        self.levels = nn.ModuleList(
            EncoderLevel(widths[index], widths[index + 1], config, index)
            for index in range(len(config.width_multipliers))
        )
        # Elements, per latent pixel, of the largest tensor that exists for all frames of a pass: the levels before the
        # first temporal one run a few frames at a time.
        untimed = next((index for index, level in enumerate(self.levels) if level.temporal), len(self.levels))
        reduced = min(untimed, len(self.levels) - 1)
        self.activation_elements = 4 ** (len(self.levels) - 1 - reduced) * config.temporal_compression * widths[untimed]
        self.middle = Middle(widths[-1], config)
        self.head = Head(widths[-1], 2 * config.latent_channels)
        self.linear_skip = LinearSkip(config, encodes=True) if config.linear_skip else None

    def forward(self, video: Tensor, halo: Halo) -> Tensor:
        moments = halo.run_global(self._latent_stage, halo.run_local(self.local_stages(), video))
        if self.linear_skip is not None:
            moments = self.linear_skip.add(moments, video, at_start=halo.at_start)
        return moments

    def local_stages(self) -> tuple[LocalStage, ...]:
        """Return the stages before the middle."""
        p = self.patch_size
        channels = -(-self.conv_in.out_channels // p**2)
        return (
            LocalStage(self._features, radius=p * receptive_radius(self.conv_in), channels=channels, downscale=p),
            *(level.local_stage() for level in cast(Iterable[EncoderLevel], self.levels)),
        )

    def _features(self, video: Tensor, halo: Halo) -> Tensor:
        return self.conv_in(patchify(video, self.patch_size, halo.workspace), halo)

    def _latent_stage(self, x: Tensor, halo: Halo) -> Tensor:
        return self.head(self.middle(x, halo), halo)


class EncoderLevel(nn.Module):
    """Blocks at one resolution, then the step down to the next; Wan2.2 adds a shortcut around both."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, index: int) -> None:
        super().__init__()
        last = index == len(config.width_multipliers) - 1
        self.out_channels = out_channels
        self.temporal = not last and config.temporal_downsample[index]
        self.blocks = Blocks(in_channels, out_channels, config.level_blocks[index], config)
        self.downsample = None if last else Downsample(out_channels, temporal=self.temporal)
        self.shortcut = (
            AverageShortcut(in_channels, out_channels, time=2 if self.temporal else 1, space=1 if last else 2)
            if config.level_shortcuts
            else None
        )

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        main = self.blocks(x, halo)
        if self.downsample is not None:
            main = self.downsample(main, halo)
        if self.shortcut is not None:
            main = self.shortcut(x, main, halo)
        return main

    def local_stage(self) -> LocalStage:
        """Describe this level to the halo."""
        return LocalStage(
            self,
            radius=receptive_radius(self),
            channels=self.out_channels,
            downscale=1 if self.downsample is None else 2,
            temporal=self.temporal,
        )


class Decoder(nn.Module):
    """(B, z, t, h, w) -> (B, c, T, H, W), not clamped (`Decoder3d` in Wan's vae.py and vae2_2.py)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.output_upscale = config.output_upscale
        multipliers = config.width_multipliers[::-1]
        widths = [config.decoder_width * multiplier for multiplier in (multipliers[0], *multipliers)]
        self.conv_in = CausalConv3d(config.latent_channels, widths[0])
        self.middle = Middle(widths[0], config)
        self.levels = nn.ModuleList(
            DecoderLevel(widths[index], widths[index + 1], config, index) for index in range(len(multipliers))
        )
        self.head = Head(widths[-1], config.output_channels)
        self.linear_skip = LinearSkip(config, encodes=False) if config.linear_skip else None
        # Elements, per latent pixel, of the largest tensor that exists for all frames of a pass: the levels after the
        # last temporal one run a few frames at a time.
        timed = max((index + 1 for index, level in enumerate(self.levels) if level.temporal), default=0)
        self.activation_elements = 4**timed * config.temporal_compression * widths[timed]

    def forward(self, latents: Tensor, halo: Halo) -> Tensor:
        video = halo.run_local(self.local_stages(), halo.run_global(self._features, latents))
        if self.linear_skip is not None:
            video = self.linear_skip.add(video, latents, at_start=halo.at_start)
        return video

    def local_stages(self) -> tuple[LocalStage, ...]:
        """Return the stages after the middle."""
        last = LocalStage(
            self._pixels,
            radius=receptive_radius(self.head),
            channels=max(self.head.conv.in_channels, self.head.conv.out_channels),
            upscale=self.output_upscale * self.patch_size,
        )
        return (*(level.local_stage() for level in cast(Iterable[DecoderLevel], self.levels)), last)

    def _features(self, latents: Tensor, halo: Halo) -> Tensor:
        return self.middle(self.conv_in(latents, halo), halo)

    def _pixels(self, x: Tensor, halo: Halo) -> Tensor:
        x = self.head(x, halo)
        x = unpatchify(x, self.output_upscale, halo.workspace, by_rows=True)
        return unpatchify(x, self.patch_size, halo.workspace)


class DecoderLevel(nn.Module):
    """Blocks at one resolution, then the step up to the next; Wan2.2 adds a shortcut around both."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, index: int) -> None:
        super().__init__()
        last = index == len(config.width_multipliers) - 1
        self.temporal = not last and config.temporal_downsample[::-1][index]
        self.out_channels = out_channels
        self.upsampled = out_channels if config.level_shortcuts else out_channels // 2
        entering = in_channels if config.level_shortcuts or index == 0 else in_channels // 2
        self.blocks = Blocks(entering, out_channels, config.level_blocks[::-1][index] + 1, config)
        self.upsample = None if last else Upsample(out_channels, self.upsampled, temporal=self.temporal)
        self.shortcut = (
            RepeatShortcut(in_channels, out_channels, time=2 if self.temporal else 1, space=2)
            if config.level_shortcuts and not last
            else None
        )

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        main = self.blocks(x, halo)
        if self.upsample is not None:
            main = self.upsample(main, halo)
        if self.shortcut is not None:
            main = self.shortcut(x, main, halo)
        return main

    def local_stage(self) -> LocalStage:
        """Describe this level to the halo."""
        upscale = 1 if self.upsample is None else 2
        return LocalStage(
            self,
            radius=receptive_radius(self),
            channels=max(self.out_channels, upscale**2 * self.upsampled),
            upscale=upscale,
            temporal=self.temporal,
        )


def temporal_reach(half: Encoder | Decoder, frames: int) -> int:
    """Return an upper bound of how many latents back, or frames of as many, a result depends on its input.

    Args:
        half: The encoder or the decoder.
        frames: Frames of the input per latent.
    """
    reach, encodes = 0, isinstance(half, Encoder)
    around = ((half.conv_in,), (half.middle, half.head)) if encodes else ((half.conv_in, half.middle), (half.head,))
    for part in (*around[0], *half.levels, *around[1]):
        taps = sum(conv.kernel_size[0] - 1 for conv in part.modules() if isinstance(conv, nn.Conv3d))
        reach += -(-taps // frames)
        if getattr(part, "temporal", False):
            frames = frames // 2 if encodes else 2 * frames
    return reach


class Autoencoder(nn.Module):
    """The network of one config (`WanVAE_` in Wan's vae.py). It keeps no state: results depend on the arguments alone.

    Args:
        config: The architecture.

    Attributes:
        encoder_tf32: Whether inference on a GPU may round the encoder's float32 convolutions to TF32.
        decoder_tf32: The same for the decoder.
    """

    encoder_tf32 = False
    decoder_tf32 = False

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        check_type("config", config, VAEConfig, "a VAEConfig; WanVAE.from_config takes names")
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = Conv3d(moments, moments, 1)
        self.post_quant_conv = Conv3d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)
        if config.images_only:
            remove_past(self)

    def moments(self, video: Tensor, halo: Halo) -> Tensor:
        """(B, c, T, H, W) in [-1, 1] -> mean and log-variance of the raw latents, (B, 2z, t, h, w)."""
        return self.quant_conv(self.encoder(video, halo))

    def pixels(self, raw: Tensor, halo: Halo) -> Tensor:
        """Raw latents (B, z, t, h, w) -> (B, c, T, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(raw), halo)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the encoder's weights, and of the decoder's unless `set_dtypes` gave it another."""
        return self.quant_conv.weight.dtype

    @property
    def decoder_dtype(self) -> torch.dtype:
        """The dtype of the decoder's weights."""
        return self.post_quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.quant_conv.weight.device
