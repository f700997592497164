"""What a VAE's calls would take, found by letting them through on the meta device."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wan_vae.memory.part import Part
from wan_vae.memory.planner import Job
from wan_vae.model.halo import Halo
from wan_vae.model.steps import Step
from wan_vae.model.tiling import Tiling
from wan_vae.ops.rehearsal import Rehearsal

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE

# After the first latent and so many passes, all that is held has its size.
LONG_ENOUGH = 3
# Whatever the size, a pixel costs the same.
_SIDE = 4


def job_of(
    vae: "WanVAE", call: str, x: Tensor, latents_per_pass: int, *, goes_on: bool, device: torch.device, part: Part
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
        with _rehearsal(device, twin, x) as rehearsal:
            if goes_on:
                begin = twin._decoding if decodes else twin._encoding
                stream = begin(latents, neighbors=part.neighbors, tiling=tiling)
                for start, stop in [(0, 1), *((at, at + latents * unit) for at in range(1, longest, latents * unit))]:
                    result = stream.push(part.cut(x[:, :, start:stop]))
                    assert result is not None, "a chunk gives what it makes up"
                    part.joined(result)
                    del result
                return rehearsal.peak
            given = part.cut(x)
            # In whole pictures a clip passes as a stream does: of what is longer, only the result is larger.
            result = run(given if tiling is not None else given[:, :, :longest], latents, tiling, part.neighbors)
            frames = 1 + (x.shape[2] - 1) // unit * becomes
            passing = rehearsal.peak
            if frames > result.shape[2]:
                size, dtype, missing = result[:, :, 0].nbytes, result.dtype, frames - result.shape[2]
                shape = (*result.shape[:2], frames, *result.shape[3:])
                passing += missing * size
                del result
                result = given.new_empty(shape, dtype=dtype)
            part.joined(result)
        return max(passing, rehearsal.peak)

    steps = vae.decoder.steps() if decodes else vae.encoder.steps()
    side = 1 if decodes else vae.config.spatial_compression
    small = x.new_empty((1, x.shape[1], 1 + LONG_ENOUGH * unit, _SIDE * side, _SIDE * side))
    with _rehearsal(device, twin, small) as rehearsal:
        counter = _Counter(rehearsal)
        twin.pixels(small.to(vae.decoder_dtype), counter) if decodes else twin.moments(small.to(vae.dtype), counter)
    height, width = (size // side for size in part.cut(x).shape[3:])
    return Job(call, steps, counter.costs, height, width, part.beyond, latents_per_pass, goes_on, peak)


def _rehearsal(device: torch.device, twin: "WanVAE", x: Tensor) -> Rehearsal:
    return Rehearsal(device, [*twin.parameters(), *twin.buffers(), x])


class _Counter(Halo):
    """Finds what each step costs.

    Attributes:
        costs: Operations by pixel of the step's input.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        super().__init__()
        self.costs: list[float] = []
        self._rehearsal = rehearsal

    def local(self, steps: Sequence[Step], x: Tensor) -> Tensor:
        for step in steps:
            before, pixels = self._rehearsal.operations, x.shape[3] * x.shape[4]
            x = step.run(x, self)
            self.costs.append((self._rehearsal.operations - before) / pixels)
        return x
