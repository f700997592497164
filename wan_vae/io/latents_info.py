"""What a latents file says of its clip and model, and in which form.

The file is a safetensors file with the tensor `latents`, (1, z, t, h, w), normalized, the mean of their posterior;
where it was asked for, `logvar`, the logarithm of its variance, of the same shape and dtype; and strings as metadata:

- `format` is "wan_vae.latents", `version` "1".
- `frames`, `width`, `height`: size of the clip before padding.
- `fps`, `pixel_aspect`: fractions, such as "30000/1001", from 1/65536 to 65536, of whole numbers below 2^31.
- `color`: color of the source as JSON (see `wan_vae.io.Color`).
- `config`: architecture as JSON (see `wan_vae.config.VAEConfig`).
- `checkpoint`: digest of the weights (see `wan_vae.checkpoints.Checkpoint.digest`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from numbers import Integral
from typing import Any

from wan_vae.arguments import check_type, shown
from wan_vae.config import VAEConfig
from wan_vae.errors import LatentsError
from wan_vae.io.clip import LARGEST_ASPECT, ClipInfo
from wan_vae.io.color import Color
from wan_vae.io.timing import FASTEST, SLOWEST, exact_rate

FORMAT = "wan_vae.latents"
VERSION = "1"
_LARGEST_INTEGER = 2**31 - 1  # numerators and denominators are 32 bits in FFmpeg


@dataclass(frozen=True)
class LatentsInfo:
    """Properties of the clip and of the model that encoded it.

    Attributes:
        frames: Of the clip.
        width: In pixels, before padding.
        height: In pixels, before padding.
        fps: Frames a second, from 1/65536 to 65536; any number is taken, and the fraction that is meant is kept.
        pixel_aspect: Width of a pixel by its height, from 1/65536 to 65536; 1 for square ones.
        color: The clip's color, such as `wan_vae.io.Color("bt709", full_range=False)`.
        config: The model's architecture, `vae.config`.
        checkpoint: What tells by which weights the clip was encoded, `vae.digest()`.

    Raises:
        LatentsError: A number is out of range: no file can hold it.
        UserError: A value is of another type.
    """

    frames: int
    width: int
    height: int
    fps: Fraction
    pixel_aspect: Fraction
    color: Color
    config: VAEConfig
    checkpoint: str

    def __post_init__(self) -> None:
        for name, kind in (("color", Color), ("config", VAEConfig), ("checkpoint", str)):
            check_type(name, getattr(self, name), kind, f"a {kind.__name__}")
        given: Any = self.fps
        if not isinstance(given, Fraction):
            object.__setattr__(self, "fps", exact_rate(self.fps))
        check_type("pixel_aspect", self.pixel_aspect, (Fraction, int), "a whole number or a fraction")
        for name in ("frames", "width", "height"):
            check_type(name, getattr(self, name), Integral, "a whole number")
            if not 1 <= getattr(self, name) <= _LARGEST_INTEGER:
                raise LatentsError(f"{name} is {getattr(self, name)}; it must be from 1 to {_LARGEST_INTEGER}.")
        ranges = {"fps": (SLOWEST, FASTEST), "pixel_aspect": (Fraction(1, LARGEST_ASPECT), LARGEST_ASPECT)}
        for name, (least, most) in ranges.items():
            ratio = getattr(self, name)
            if not least <= ratio <= most:
                raise LatentsError(f"{name} is {ratio}; it must be from {least} to {most}.")
            if max(ratio.numerator, ratio.denominator) > _LARGEST_INTEGER:
                raise LatentsError(f"{name} is {ratio}, a fraction of numbers above {_LARGEST_INTEGER}.")

    @classmethod
    def of_clip(cls, info: ClipInfo, frames: int, config: VAEConfig, checkpoint: str) -> "LatentsInfo":
        """Return what is stored of a clip of which so many frames were encoded."""
        return cls(
            frames=frames,
            width=info.width,
            height=info.height,
            fps=info.fps,
            pixel_aspect=info.pixel_aspect,
            color=info.color,
            config=config,
            checkpoint=checkpoint,
        )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise a LatentsError for latents of another shape than those of this clip."""
        config, side = self.config, self.config.spatial_compression
        times = 1 + -(-(self.frames - 1) // config.temporal_compression)
        expected = (1, config.latent_channels, times, -(-self.height // side), -(-self.width // side))
        if shape != expected:
            raise LatentsError(
                f"its latents are {shape}, where {self.frames} frames of {self.width}x{self.height} have {expected}."
            )

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata of the file."""
        texts = ("frames", "width", "height", "fps", "pixel_aspect", "checkpoint")
        return {
            "format": FORMAT,
            "version": VERSION,
            **{name: str(getattr(self, name)) for name in texts},
            "color": json.dumps(asdict(self.color)),
            "config": json.dumps(self.config.to_dict()),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "LatentsInfo":
        """Parse the metadata of a file; a LatentsError if the version is another, or a value is missing or invalid."""
        if metadata.get("version") != VERSION:
            raise LatentsError(f"it is of version {metadata.get('version')}; this program reads version {VERSION}.")
        try:
            return cls(
                frames=_whole_number(metadata["frames"]),
                width=_whole_number(metadata["width"]),
                height=_whole_number(metadata["height"]),
                fps=_ratio(metadata["fps"]),
                pixel_aspect=_ratio(metadata["pixel_aspect"]),
                color=_color(json.loads(metadata["color"])),
                config=VAEConfig.from_dict(json.loads(metadata["config"]), origin="its config"),
                checkpoint=metadata["checkpoint"],
            )
        except KeyError as error:
            raise LatentsError(f"its metadata is damaged: it has no {error}.") from error
        except (RecursionError, TypeError, ValueError) as error:
            raise LatentsError(f"its metadata is damaged: {str(error).rstrip('.')}.") from error


def _whole_number(text: str) -> int:
    if re.fullmatch("[0-9]{1,10}", text) is None:
        raise ValueError(f"{text!r} is no whole number of up to 10 digits")
    return int(text)


def _ratio(text: str) -> Fraction:
    if re.fullmatch("[0-9]{1,10}(/0*[1-9][0-9]{0,9})?", text) is None:
        raise ValueError(f"{text!r} is no fraction such as '30000/1001'")
    return Fraction(text)


def _color(values: Any) -> Color:
    kinds = {"matrix": str, "full_range": bool, "primaries": int, "transfer": int}
    if not isinstance(values, dict) or not all(type(value) is kinds.get(name) for name, value in values.items()):
        raise ValueError(f"{shown(values)} is no color")
    return Color(**values)
