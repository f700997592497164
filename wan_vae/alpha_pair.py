"""Wan-Alpha's pair of models: both decode the same latents, one to colors, the other to their transparency."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan_vae.arguments import check_type
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget, parse_bytes
from wan_vae.inference.passes import Direction
from wan_vae.inference.planner import BudgetError, Plan
from wan_vae.inference.stream import DecodeStream
from wan_vae.vae import WanVAE
from wan_vae.validation import check_latents


class AlphaPair:
    """A model that decodes latents to (B, 4, T, H, W) in [-1, 1]: RGB, and alpha from -1 (transparent) to 1.

    Alpha is the mean of the channels of the second model, which paints it in gray (`render_video` in Wan-Alpha's
    generate_dora_lightx2v_mask.py). Pictures are not premultiplied. It takes the calls of `WanVAE` that decode.

    Args:
        color: The model of the colors, such as wan_alpha_2.1_vae_rgb_channel.safetensors.
        alpha: The model of the alpha channel, of the same architecture.

    Raises:
        UserError: The models are of different architectures, or on different devices.
    """

    def __init__(self, color: WanVAE, alpha: WanVAE) -> None:
        for name, model in (("color", color), ("alpha", alpha)):
            check_type(name, model, WanVAE, "a WanVAE")
        for field in fields(color.config):
            ours, theirs = getattr(color.config, field.name), getattr(alpha.config, field.name)
            if ours != theirs:
                raise UserError(
                    f"The two models do not decode the same latents to the same size: {field.name} is {ours} and"
                    f" {theirs}; pass the two that were published together."
                )
        if color.config.image_channels != 3:
            raise UserError("The model of the colors decodes to RGBA itself; it needs no other for alpha.")
        if color.device != alpha.device:
            raise UserError(f"The model of the colors is on {color.device}, that of alpha on {alpha.device}; move one.")
        self.color, self.alpha = color, alpha
        self.config = replace(color.config, image_channels=4)

    @classmethod
    def from_pretrained(cls, color: str | Path, alpha: str | Path, **options: Any) -> "AlphaPair":
        """Load both models; `options` are those of `WanVAE.from_pretrained`."""
        return cls(WanVAE.from_pretrained(color, **options), WanVAE.from_pretrained(alpha, **options))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.color.device

    def digest(self) -> str:
        """Return the SHA-256 of the color model's weights."""
        return self.color.digest()

    def default_chunk_size(self, height: int, width: int) -> int:
        """Return the latents per pass, as `WanVAE.default_chunk_size`."""
        return self.color.default_chunk_size(height, width)

    def plan(
        self, direction: Direction, *, frames: int, height: int, width: int, memory: Budget, streaming: bool = False
    ) -> Plan:
        """Return how each of the two models would decode within its share of a budget; see `WanVAE.plan`.

        Raises:
            UserError: As by `WanVAE.plan`; or the direction is "encode", which the pair does not do.
        """
        if direction != "decode":
            raise UserError("A pair of models for colors and alpha decodes only; plan for the model that encodes.")
        scale = self.config.output_upscale
        result = self._bytes_of_result(1, frames, height * scale, width * scale)
        shares = {"of": 2} if streaming else {"besides": result}
        with self._sharing(memory, **shares) as budget:
            assert budget is not None
            return self.color.plan(
                direction, frames=frames, height=height, width=width, memory=budget, streaming=streaming
            )

    def decode(
        self,
        latents: Tensor,
        *,
        raw: bool = False,
        latents_per_pass: int | None = None,
        memory: Budget | None = None,
    ) -> Tensor:
        """Latents (B, z, t, h, w) -> video (B, 4, T, H, W) in [-1, 1]; arguments and errors as of `WanVAE.decode`."""
        check_latents(latents, self.config, whole=True)
        batch, _, length, height, width = latents.shape
        time, side = self.config.temporal_compression, self.config.spatial_compression * self.config.output_upscale
        size = 1 + time * (length - 1), height * side, width * side
        with self._sharing(memory, besides=self._bytes_of_result(batch, *size)) as budget:
            options: dict[str, Any] = {"raw": raw, "latents_per_pass": latents_per_pass, "memory": budget}
            color = self.color.decode(latents, **options)
            video = color.new_empty((batch, 4, *size))
            video[:, :3] = color
            del color
            alpha = self.alpha.decode(latents, **options)
            video[:, 3:] = alpha.mean(dim=1, keepdim=True)
        return video

    def decode_stream(
        self, chunks: Iterable[Tensor], *, latents_per_pass: int | None = None, memory: Budget | None = None
    ) -> Iterator[Tensor]:
        """Decode normalized latents (B, z, n, h, w) as they arrive, as `WanVAE.decode_stream`; yields (B, 4, m, H, W).

        `memory` is for both models together.
        """
        check_type("chunks", chunks, Iterable, "an iterable of tensors, such as [latents]")
        with (
            self._sharing(memory, of=2) as budget,
            DecodeStream(self.color, latents_per_pass=latents_per_pass, memory=budget) as color,
            DecodeStream(self.alpha, latents_per_pass=latents_per_pass, memory=budget) as alpha,
        ):
            for chunk in chunks:
                first, second = color.push(chunk), alpha.push(chunk)
                if first is not None and second is not None:
                    yield torch.cat([first, second.mean(dim=1, keepdim=True)], dim=1)

    def _bytes_of_result(self, batch: int, frames: int, height: int, width: int) -> int:
        """Return the bytes of the joined video, which is there beside each call: that of the colors ends before."""
        return batch * 4 * frames * height * width * self.color.decoder_dtype.itemsize

    @contextmanager
    def _sharing(self, memory: Budget | None, *, of: int = 1, besides: int = 0) -> Iterator[int | None]:
        """Give the budget of one model, whose error then names that of both: `of` shares, and bytes `besides`."""
        if memory is None:
            yield None
            return
        budget = parse_bytes(memory, self.device)
        try:
            yield max(1, (budget - besides) // of)
        except BudgetError as error:
            raise BudgetError.of("decode", budget, error.smallest * of + besides) from None
