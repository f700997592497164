"""What a benchmark is asked to measure."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wan_vae.errors import UserError

if TYPE_CHECKING:
    from wan_vae.config import VAEConfig

DIRECTIONS = ("encode", "decode")
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to measure, and how often.

    Attributes:
        checkpoint: A trained model's file, folder or name; None for random weights.
        preset: With random weights, a config's name or YAML file.
        width: Pixels of the clip.
        height: Pixels of the clip.
        frames: Frames of the clip.
        device: A device's type, such as "cpu".
        dtypes: Some of `DTYPES`.
        directions: Some of `DIRECTIONS`.
        runs: Timed calls of each implementation, direction and dtype.
        warmup: Calls of each before the timed ones, beside one that is always made; all but the first measure memory.
        threads: Of each implementation on a CPU; None for torch's choice.
        errors: Whether outputs are compared with float64.
        profile: Whether to ask where our time goes.
        tune: Whether to choose our kernels for a GPU by measuring them first.
    """

    checkpoint: str | None
    preset: str
    width: int
    height: int
    frames: int
    device: str
    dtypes: tuple[str, ...]
    directions: tuple[str, ...]
    runs: int
    warmup: int
    threads: int | None
    errors: bool
    profile: bool
    tune: bool

    def check_fits(self, config: "VAEConfig") -> None:
        """Refuse a clip that this architecture cannot take.

        Raises:
            UserError: Its length or size does not fit.
        """
        unit, multiple = config.temporal_compression, config.spatial_compression
        if (self.frames - 1) % unit:
            below = (self.frames - 1) // unit * unit + 1
            raise UserError(f"--frames is {self.frames}, not 1 + {unit}k; {below} or {below + unit} would fit.")
        if self.width % multiple or self.height % multiple or not self.width or not self.height:
            raise UserError(
                f"--size is {self.width}x{self.height}; this model takes multiples of {multiple}, such as"
                f" {_nearest(self.width, multiple)}x{_nearest(self.height, multiple)}."
            )


def _nearest(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple
