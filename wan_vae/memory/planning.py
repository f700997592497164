"""Plans for a VAE's calls."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wan_vae.checks import check_video
from wan_vae.errors import UserError
from wan_vae.memory.budget import Budget, bytes_of
from wan_vae.memory.part import Part
from wan_vae.memory.plan import Plan
from wan_vae.memory.planner import choose
from wan_vae.memory.rehearsing import LONG_ENOUGH, job_of
from wan_vae.ops.recording import recorded
from wan_vae.pace import checked_latents_per_pass, pace_of

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE


def planned(
    vae: "WanVAE",
    call: str,
    x: Tensor,
    latents_per_pass: int | None,
    memory: Budget,
    *,
    goes_on: bool = False,
    device: torch.device | None = None,
    part: Part | None = None,
) -> Plan:
    """Return how a call keeps to a budget.

    Args:
        vae: The model.
        call: "encode" or "decode".
        x: What is given to it, or will be: nothing is read of it but its shape and dtype.
        latents_per_pass: How many latents go together at most; default as without a budget.
        memory: What the call may take beside the loaded model and `x`.
        goes_on: Whether `x` is the beginning of a stream, whose length does not matter.
        device: Where it is computed, if not where the weights are.
        part: What of the picture is computed there; default all of it.

    Raises:
        UserError: The budget is too small, or the call is one whose memory cannot be foretold.
    """
    if vae.training:
        raise UserError("A budget of memory is for eval mode; call vae.eval() first.")
    if recorded():
        raise UserError("A budget of memory leaves no gradients, graphs or autocast; call this in torch.no_grad().")
    device = vae.device if device is None else device
    budget = bytes_of(memory, device)
    side, unit = (1, 1) if call == "decode" else (vae.config.spatial_compression, vae.config.temporal_compression)
    chosen = checked_latents_per_pass(latents_per_pass)
    part = Part() if part is None else part
    frame = torch.empty((*x.shape[:2], 1, *x.shape[3:]), dtype=x.dtype, device="meta")
    at_once = pace_of(vae, part.cut(frame)[:, :1].numel() // side**2, chosen, device=device).group
    frames = LONG_ENOUGH * at_once * unit + 1 if goes_on else x.shape[2]
    given = frame.new_empty((*x.shape[:2], frames, *x.shape[3:]))
    return choose(job_of(vae, call, given, at_once, goes_on=goes_on, device=device, part=part), budget)


def input_of(vae: "WanVAE", call: str, video: tuple[int, ...]) -> Tensor:
    """Return what is given to a call for a video of this shape (B, 3, T, H, W), on the meta device.

    Raises:
        UserError: The model does not take such a video.
    """
    # It may be wider than the weights, as files' frames and latents are; copies of it then take most.
    wide = torch.promote_types(vae.decoder_dtype if call == "decode" else vae.dtype, torch.float32)
    x = torch.empty(video, dtype=wide, device="meta")
    check_video(x, vae.config, whole=True)
    if call == "decode":
        batch, _, frames, height, width = video
        side, unit = vae.config.spatial_compression, vae.config.temporal_compression
        size = (1 + (frames - 1) // unit, height // side, width // side)
        x = torch.empty((batch, vae.config.latent_channels, *size), dtype=wide, device="meta")
    return x
