"""What a VAE's calls would take, found by letting them through on the meta device."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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


def job_of(vae: "WanVAE", call: str, x: Tensor, latents_per_pass: int, *, goes_on: bool, device: torch.device) -> Job:
    """Describe a call to the planner.

    Args:
        vae: The model.
        call: "encode" or "decode".
        x: What will be given to it, on the meta device.
        latents_per_pass: How many latents go together at most.
        device: Where it is to be computed.
        goes_on: Whether `x` comes in chunks, each of as many latents as go together or of their frames.
    """
    with torch.device("meta"):
        twin = type(vae)(vae.config).eval().requires_grad_(False)
    twin.set_dtypes(encoder=vae.dtype, decoder=vae.decoder_dtype)
    decodes = call == "decode"
    unit = 1 if decodes else vae.config.temporal_compression
    run = twin._decoded if decodes else twin._moments

    def peak(latents: int, tiling: Tiling | None) -> int:
        longest = 1 + LONG_ENOUGH * latents * unit
        # In whole pictures a clip passes as a stream does: of what is longer, only the result is larger.
        given = x[:, :, :longest] if tiling is None or goes_on else x
        beyond = 0
        with torch.no_grad(), _rehearsal(device, twin, x) as rehearsal:
            if goes_on:
                stream = twin._decoding(latents, tiling=tiling) if decodes else twin._encoding(latents, tiling=tiling)
                stream.push(given[:, :, :1])
                for start in range(1, given.shape[2], latents * unit):
                    stream.push(given[:, :, start : start + latents * unit])
            else:
                result = run(given, latents, tiling)
                rate = (result.shape[2] - 1) / max(1, given.shape[2] - 1)
                beyond = int(result[:, :, :1].numel() * result.dtype.itemsize * rate * (x.shape[2] - given.shape[2]))
        return rehearsal.peak + beyond

    steps = vae.decoder.steps() if decodes else vae.encoder.steps()
    side = 1 if decodes else vae.config.spatial_compression
    small = x.new_empty((1, x.shape[1], 1 + LONG_ENOUGH * unit, _SIDE * side, _SIDE * side))
    with torch.no_grad(), _rehearsal(device, twin, small) as rehearsal:
        counter = _Counter(rehearsal)
        twin.pixels(small.to(vae.decoder_dtype), counter) if decodes else twin.moments(small.to(vae.dtype), counter)
    return Job(call, steps, counter.costs, x.shape[3] // side, x.shape[4] // side, latents_per_pass, goes_on, peak)


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
