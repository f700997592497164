"""How commands keep to `--memory`."""

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from wan_vae.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from wan_vae.inference.planner import Plan
    from wan_vae.vae import WanVAE
    from wan_vae.vae import WanVAE as LeadVAE

AUTO = "auto"
_FRAMES_AT_ONCE = 4


def budget_of(vae: "WanVAE | LeadVAE", memory: str) -> int | None:
    """Return `--memory` in bytes; None for auto on a device that does not tell what it has left.

    Of several processes, it is what each may take.
    """
    from wan_vae.inference.budget import parse_bytes, reports_free_memory
    from wan_vae.vae import WanVAE

    if memory == AUTO and not reports_free_memory(vae.device):
        return None
    return parse_bytes(memory, vae.device) if isinstance(vae, WanVAE) else vae.budget(memory)


def decoded(
    vae: "WanVAE | LeadVAE", latents: Iterable["Tensor"], height: int, width: int, memory: str
) -> Iterator["Tensor"]:
    """Yield the frames of latents (1, z, n, h, w) in a budget: as a stream, or, if what that has to remember does not
    fit in, with all of the clip at once.

    Args:
        vae: The model.
        latents: Any chunks of the clip.
        height: Of the video.
        width: Likewise.
        memory: As `--memory` says it.
    """
    budget = budget_of(vae, memory)
    if budget is None or _streams(vae, "decode", height, width, budget):
        yield from vae.decode_stream(latents, memory=budget)
        return

    import torch

    video = vae.decode(torch.cat(list(latents), dim=2), memory=budget)
    yield from torch.split(video, _FRAMES_AT_ONCE, dim=2)


def encoded(
    vae: "WanVAE | LeadVAE", video: Iterable["Tensor"], height: int, width: int, memory: str
) -> Iterator["Tensor"]:
    """Yield the final latents of frames (1, 3, n, H, W) in a budget: as a stream, or, if what that has to remember does
    not fit in, with all of the clip at once, whose frames then count.
    """
    budget = budget_of(vae, memory)
    if budget is None or _streams(vae, "encode", height, width, budget):
        yield from vae.encode_stream(video, memory=budget)
        return

    import torch

    from wan_vae.inference.budget import format_bytes

    chunks, size = [], 0
    for chunk in video:
        chunks.append(chunk)
        size += chunk.nbytes
        if 2 * size > budget:
            raise UserError(
                f"{format_bytes(budget)} of memory is too little to encode {width}x{height} pixels as a stream, and to"
                f" hold more than {sum(part.shape[2] for part in chunks)} frames of it; encode fewer with --frames."
            )
    whole = torch.cat(chunks, dim=2)
    chunks.clear()
    yield vae.encode(whole, memory=budget - size)


def budgets_of_streams(vae: "WanVAE | LeadVAE", height: int, width: int, memory: str) -> tuple[int, int] | None:
    """Return the parts of a budget for encoding and for decoding, where both go on side by side; None for no budget.

    Raises:
        UserError: They do not fit in together.
    """
    budget = budget_of(vae, memory)
    if budget is None:
        return None
    try:
        encoding = _stream_plan(vae, "encode", height, width, budget).peak
        decoding = _stream_plan(vae, "decode", height, width, max(1, budget - encoding)).peak
    except UserError as error:
        raise UserError(
            f"To encode and decode {width}x{height} pixels side by side does not fit: {error} `encode` and then"
            " `decode` take less."
        ) from error
    # What is left serves both: chunks may be larger than those that were planned with.
    encoding += (budget - encoding - decoding) // 2
    return encoding, budget - encoding


def _streams(vae: "WanVAE | LeadVAE", call: Literal["encode", "decode"], height: int, width: int, budget: int) -> bool:
    try:
        plan = _stream_plan(vae, call, height, width, budget)
    except UserError:
        return False
    if plan.tiling is not None:
        logging.getLogger("wan_vae").info(str(plan))
    return True


def _stream_plan(
    vae: "WanVAE | LeadVAE", call: Literal["encode", "decode"], height: int, width: int, budget: int
) -> "Plan":
    side, unit = vae.config.spatial_compression, vae.config.temporal_compression
    height, width = -(-height // side) * side, -(-width // side) * side
    return vae.plan(call, frames=1 + unit, height=height, width=width, memory=budget, streaming=True)
