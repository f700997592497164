"""Clips in chunks through any kind of model, within one budget of memory: as streams wherever these fit it."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_vae.alpha_pair import AlphaPair
from wan_vae.errors import UserError
from wan_vae.evaluation.reconstruct import reconstruct_frames
from wan_vae.inference.budget import Budget, format_bytes, parse_bytes, reports_free_memory
from wan_vae.inference.passes import Direction
from wan_vae.inference.planner import BudgetError, Plan
from wan_vae.io import Clip
from wan_vae.io.frames import Frames, to_host
from wan_vae.posterior import LatentStatistics, Posterior
from wan_vae.tiny import TinyVAE, check_no_budget
from wan_vae.vae import WanVAE

if TYPE_CHECKING:
    from wan_vae.sharding import ShardedVAE

Model: TypeAlias = "WanVAE | TinyVAE | ShardedVAE | AlphaPair"

_logger = logging.getLogger("wan_vae")


def read_clip(source: Clip, model: Model) -> Iterable[Frames]:
    """Return a clip in chunks that a model takes in one pass."""
    latents = model.default_chunk_size(source.info.height, source.info.width)
    return source.chunks(latents * model.config.temporal_compression)


def encode_chunks(
    model: "WanVAE | TinyVAE | ShardedVAE",
    video: Iterable[Tensor],
    height: int,
    width: int,
    memory: Budget,
    *,
    moments: bool = False,
) -> Iterable[Tensor]:
    """Encode frames (1, 3, n, H, W) within a budget: as a stream, or the whole clip where its caches do not fit.

    Of a whole clip, the frames count too. With `moments`, which only a `WanVAE` gives, mean and log-variance of the raw
    latents are yielded, (1, 2z, n, h, w).
    """
    budget = _bytes(model, memory)
    refusal = None if budget is None else _stream_refusal(model, "encode", height, width, budget)
    if budget is None or refusal is None:
        if moments and isinstance(model, WanVAE):
            return model.encode_stream(video, memory=budget, moments=True)
        return model.encode_stream(video, memory=budget)
    chunks, size = [], 0
    for chunk in video:
        chunks.append(chunk)
        size += chunk.nbytes
        if 2 * size > budget:
            raise refusal
    whole = torch.cat(chunks, dim=2)
    chunks.clear()
    try:
        if moments and isinstance(model, WanVAE):
            posterior = model.posterior(whole, memory=budget - size)
            return [torch.cat([posterior.mean, posterior.logvar], dim=1)]
        return [model.encode(whole, memory=budget - size)]
    except BudgetError:
        raise refusal from None


def latents_on_host(
    model: "WanVAE | TinyVAE | ShardedVAE",
    video: Iterable[Tensor],
    height: int,
    width: int,
    memory: Budget,
    *,
    posterior: bool = False,
) -> Iterator[tuple[Tensor, ...]]:
    """Encode as `encode_chunks` does to normalized latents (1, z, n, h, w) in the host's memory.

    With `posterior`, each comes with its log-variance, of the same shape.
    """
    encoded = encode_chunks(model, video, height, width, memory, moments=posterior)
    return to_host((_normalized_moments(model, part) if posterior else (part,) for part in encoded), model.device)


def _normalized_moments(model: Model, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return normalized latents and their log-variance from (1, 2z, n, h, w) of raw ones."""
    posterior = Posterior.from_moments(moments)
    statistics = LatentStatistics.of(model.config, moments.dtype, moments.device)
    return statistics.normalized(posterior.mean), statistics.normalized_logvar(posterior.logvar)


def reconstruct_clip(
    model: "WanVAE | TinyVAE | ShardedVAE",
    source: Clip,
    memory: Budget,
    on_latents: Callable[[Tensor], object] | None = None,
) -> Iterator[tuple[Frames, NDArray[np.uint8]]]:
    """Yield each frame of a clip and what a model decodes it to, within a budget: see `reconstruct_frames`."""
    info, scale = source.info, model.config.output_upscale
    budgets = _stream_budgets(model, info.height, info.width, memory)
    size = info.width * scale, info.height * scale
    return reconstruct_frames(model, read_clip(source, model), *size, budgets, on_latents)


def decode_chunks(model: Model, latents: Iterable[Tensor], height: int, width: int, memory: Budget) -> Iterable[Tensor]:
    """Decode latents (1, z, n, h, w) within a budget: as a stream, or the whole clip where its caches do not fit."""
    budget = _bytes(model, memory)
    refusal = None if budget is None else _stream_refusal(model, "decode", height, width, budget)
    if refusal is None:
        return model.decode_stream(latents, memory=budget)
    try:
        video = model.decode(torch.cat(list(latents), dim=2), memory=budget)
    except BudgetError:
        raise refusal from None
    return torch.split(video, 4, dim=2)  # frames are rounded a few at a time


def _stream_budgets(model: Model, height: int, width: int, memory: Budget) -> tuple[int, int] | None:
    """Return the shares of encoding and decoding of a budget where both run as streams; None for no budget."""
    budget = _bytes(model, memory)
    if budget is None:
        return None
    try:
        encoding = _plan(model, "encode", height, width, budget).peak
        decoding = _plan(model, "decode", height, width, max(1, budget - encoding)).peak
    except BudgetError:
        least = {call: _least_budget(model, call, height, width) for call in ("encode", "decode")}
        if sum(least.values()) > budget:
            raise UserError(
                f"{format_bytes(budget)} of memory is too little to encode and decode {width}x{height} pixels together;"
                f" {-(-sum(least.values()) // 2**20)}MiB is the smallest that works, and `encode` and then `decode`"
                " take less."
            ) from None
        encoding = _plan(model, "encode", height, width, budget - least["decode"]).peak
        decoding = _plan(model, "decode", height, width, budget - encoding).peak
    # Both get half of the rest: chunks may be larger than planned.
    encoding += (budget - encoding - decoding) // 2
    return encoding, budget - encoding


def _bytes(model: Model, memory: Budget) -> int | None:
    """Return a budget in bytes; None for "auto" if the model keeps to none, or the device tells not what is free."""
    if isinstance(model, TinyVAE):
        check_no_budget(None if memory == "auto" else memory)
        return None
    if memory == "auto" and not reports_free_memory(model.device):
        return None
    if isinstance(model, WanVAE | AlphaPair):
        return parse_bytes(memory, model.device)
    return model.budget(memory)


def _stream_refusal(model: Model, call: Direction, height: int, width: int, budget: int) -> UserError | None:
    """Return the error for a stream that does not fit a budget; None if it does."""
    try:
        plan = _plan(model, call, height, width, budget)
    except UserError as error:
        return error
    if plan.tiling is not None:
        _logger.info(str(plan))
    return None


def _least_budget(model: Model, call: Direction, height: int, width: int) -> int:
    try:
        return _plan(model, call, height, width, 1).peak
    except BudgetError as error:
        return error.smallest


def _plan(model: Model, call: Direction, height: int, width: int, budget: int) -> Plan:
    assert not isinstance(model, TinyVAE)  # it has no budget
    _logger.info("planning")
    multiple = model.config.spatial_compression
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    return model.plan(call, frames=1, height=height, width=width, memory=budget, streaming=True)
