"""What a planner decided."""

from dataclasses import dataclass

from wan_vae.memory.budget import in_words
from wan_vae.model.tiling import Tiling


@dataclass(frozen=True)
class Plan:
    """How one call goes through the network.

    Attributes:
        call: "encode" or "decode".
        budget: Bytes it may take beside the loaded model and its input.
        peak: Bytes it is predicted to take at most.
        overhead: Operations beyond those of whole pictures, as a part of them.
        latents_per_pass: How many latents go together, or the frames of as many.
        tiling: How pictures are cut; None if they are not.
        steps: How many steps the network's local part has.
    """

    call: str
    budget: int
    peak: int
    overhead: float
    latents_per_pass: int
    tiling: Tiling | None
    steps: int

    def __str__(self) -> str:
        passes = "1 latent a pass" if self.latents_per_pass == 1 else f"{self.latents_per_pass} latents a pass"
        return (
            f"{self.call}: {self.cut}, {passes}; at most {in_words(self.peak)} of {in_words(self.budget)},"
            f" {100 * self.overhead:.1f} % more operations than whole pictures"
        )

    @property
    def cut(self) -> str:
        """How pictures are cut, in words."""
        if self.tiling is None:
            return "whole pictures"
        tiles = f"{self.tiling.rows}x{self.tiling.columns} tiles (rows x columns)"
        whole = self.tiling.first + self.steps - self.tiling.last
        return f"{tiles} in {self.steps - whole} of {self.steps} steps"
