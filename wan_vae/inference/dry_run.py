"""Plans for a VAE's calls.

What a VAE's calls would take, found by letting them through on the meta device.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget, parse_bytes
from wan_vae.inference.chunk_size import check_latents_per_pass, choose_chunk_size
from wan_vae.inference.planner import Job, Part, Plan, choose
from wan_vae.inference.tiling import Tiling
from wan_vae.model.halo import Halo
from wan_vae.model.stages import LocalStage
from wan_vae.ops.dispatch import needs_plain_ops
from wan_vae.ops.memory_estimator import MemoryEstimator
from wan_vae.validation import check_video

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE

# After the first latent and so many passes, all that is held has its size.
LONG_ENOUGH = 3
# Whatever the size, a pixel costs the same.
_SIDE = 4


def build_request(
    vae: "WanVAE", call: str, x: Tensor, latents_per_pass: int, *, streaming: bool, device: torch.device, part: Part
) -> Job:
    """Describe a call to the planner.

    Args:
        vae: The model.
        call: "encode" or "decode".
        x: What will be given to it, on the meta device.
        latents_per_pass: How many latents go together at most.
        device: Where it is to be computed.
        goes_on: Whether `x` comes in chunks, each of as many latents as go together or of their frames.
        part: What of the picture is computed there.
    """
    with torch.inference_mode(False), torch.device("meta"):  # a rehearsal leaves that mode, but tensors keep it
        twin = type(vae)(vae.config).eval().requires_grad_(False)
        x = torch.empty(x.shape, dtype=x.dtype)
    twin.set_dtypes(encoder=vae.dtype, decoder=vae.decoder_dtype)
    decodes = call == "decode"
    unit, becomes = (1, vae.config.temporal_compression) if decodes else (vae.config.temporal_compression, 1)
    run = twin._decoded if decodes else twin._moments

    def peak(latents: int, tiling: Tiling | None) -> int:
        longest = 1 + LONG_ENOUGH * latents * unit
        with _estimator(device, twin, x) as estimator:
            if streaming:
                begin = twin._decoding if decodes else twin._encoding
                stream = begin(latents, neighbors=part.neighbors, tiling=tiling)
                for start, stop in [(0, 1), *((at, at + latents * unit) for at in range(1, longest, latents * unit))]:
                    result = stream.push(part.cut(x[:, :, start:stop]))
                    assert result is not None, "a chunk gives what it makes up"
                    part.joined(result)
                    del result
                return estimator.peak
            given = part.cut(x)
            # In whole pictures a clip passes as a stream does: of what is longer, only the result is larger.
            result = run(given if tiling is not None else given[:, :, :longest], latents, tiling, part.neighbors)
            frames = 1 + (x.shape[2] - 1) // unit * becomes
            passing = estimator.peak
            if frames > result.shape[2]:
                size, dtype, missing = result[:, :, 0].nbytes, result.dtype, frames - result.shape[2]
                shape = (*result.shape[:2], frames, *result.shape[3:])
                passing += missing * size
                del result
                result = given.new_empty(shape, dtype=dtype)
            part.joined(result)
        return max(passing, estimator.peak)

    steps = vae.decoder.steps() if decodes else vae.encoder.steps()
    side = 1 if decodes else vae.config.spatial_compression
    small = x.new_empty((1, x.shape[1], 1 + LONG_ENOUGH * unit, _SIDE * side, _SIDE * side))
    with _estimator(device, twin, small) as estimator:
        counter = _Counter(estimator)
        twin.pixels(small.to(vae.decoder_dtype), counter) if decodes else twin.moments(small.to(vae.dtype), counter)
    height, width = (size // side for size in part.cut(x).shape[3:])
    return Job(call, steps, counter.costs, height, width, part.beyond, latents_per_pass, streaming, peak)


def _estimator(device: torch.device, twin: "WanVAE", x: Tensor) -> MemoryEstimator:
    return MemoryEstimator(device, [*twin.parameters(), *twin.buffers(), x])


class _Counter(Halo):
    """Finds what each step costs.

    Attributes:
        costs: Operations by pixel of the step's input.
    """

    def __init__(self, estimator: MemoryEstimator) -> None:
        super().__init__()
        self.costs: list[float] = []
        self._estimator = estimator

    def run_local(self, steps: Sequence[LocalStage], x: Tensor) -> Tensor:
        for step in steps:
            before, pixels = self._estimator.operations, x.shape[3] * x.shape[4]
            x = step.run(x, self)
            self.costs.append((self._estimator.operations - before) / pixels)
        return x


def make_plan(
    vae: "WanVAE",
    call: str,
    x: Tensor,
    latents_per_pass: int | None,
    memory: Budget,
    *,
    streaming: bool = False,
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
    if needs_plain_ops():
        raise UserError("A budget of memory leaves no gradients, graphs or autocast; call this in torch.no_grad().")
    device = vae.device if device is None else device
    budget = parse_bytes(memory, device)
    side, unit = (1, 1) if call == "decode" else (vae.config.spatial_compression, vae.config.temporal_compression)
    chosen = check_latents_per_pass(latents_per_pass)
    part = Part() if part is None else part
    frame = torch.empty((*x.shape[:2], 1, *x.shape[3:]), dtype=x.dtype, device="meta")
    at_once = choose_chunk_size(vae, part.cut(frame)[:, :1].numel() // side**2, chosen, device=device).group
    frames = LONG_ENOUGH * at_once * unit + 1 if streaming else x.shape[2]
    given = frame.new_empty((*x.shape[:2], frames, *x.shape[3:]))
    return choose(build_request(vae, call, given, at_once, streaming=streaming, device=device, part=part), budget)


def dummy_input(vae: "WanVAE", call: str, video: tuple[int, ...]) -> Tensor:
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
