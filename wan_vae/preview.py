"""Previews of latents without a network: each pixel is a linear function of one latent, which takes no weights.

RGB = bias + normalized latents @ factors, one picture per latent frame at the size of the latents, enlarged. It shows
what is where and in which color, but no detail. The factors, and where each set is from, are in `weights/preview.json`;
`scripts/fit_preview.py` fits them for other models.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import LatentsError
from wan_vae.validation import check_channels

FACTORS_FILE = Path(__file__).parent / "weights" / "preview.json"
_LATENTS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class PreviewFactors:
    """A linear map from normalized latents to RGB in [-1, 1].

    Attributes:
        factors: (z, 3).
        bias: (3,).
        origin: Where they are from.
    """

    factors: Tensor
    bias: Tensor
    origin: str

    def __call__(self, latents: Tensor) -> Tensor:
        """Normalized latents (B, z, t, h, w) -> pictures (B, 3, t, h, w) in [-1, 1]."""
        factors, bias = self.factors.to(latents.device), self.bias.to(latents.device)
        rgb = torch.einsum("bzthw,zc->bcthw", latents.to(factors.dtype), factors)
        return (rgb + bias.view(1, 3, 1, 1, 1)).clamp(-1, 1)


def load_factors(config: VAEConfig) -> PreviewFactors:
    """Return the factors for a model's latents. Models that share their statistics share their latents.

    Raises:
        LatentsError: There are none for this model.
    """
    entries = json.loads(FACTORS_FILE.read_text(encoding="utf-8"))
    for entry in entries.values():
        if (tuple(entry["latent_mean"]), tuple(entry["latent_std"])) == (config.latent_mean, config.latent_std):
            # Whatever torch's defaults are.
            factors, bias = (
                torch.tensor(entry[name], dtype=torch.float32, device="cpu") for name in ("factors", "bias")
            )
            return PreviewFactors(factors, bias, entry["origin"])
    raise LatentsError(
        f"there is no preview of this model's latents, only of those of {', '.join(entries)} and their kin; decode"
        " without --preview, or fit one with scripts/fit_preview.py."
    )


def preview(latents: Tensor, config: VAEConfig) -> Tensor:
    """Show normalized latents at their own size, one picture per latent frame.

    Args:
        latents: (B, z, t, h, w).
        config: The architecture of the model that encoded them, `vae.config`.

    Returns:
        (B, 3, t, h, w) in [-1, 1], float32.

    Raises:
        UserError: The latents are not of this shape, or there are no factors for this model.
    """
    check_channels(latents, config)
    return load_factors(config)(latents)


class LinearPreview:
    """The linear map in place of a model, for `decode_file`: latents enlarged to the clip's size and length.

    Args:
        config: The architecture of the model that encoded the latents.

    Raises:
        LatentsError: There are no factors for this model.
    """

    device = torch.device("cpu")

    def __init__(self, config: VAEConfig) -> None:
        self.config = config
        self._factors = load_factors(config)

    def default_chunk_size(self, height: int, width: int) -> int:
        """Return the latents per chunk."""
        return _LATENTS_AT_ONCE

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield videos (1, 3, n, H, W) in [-1, 1] of normalized latents (1, z, n, h, w), one latent at a time."""
        scale, repeats = self.config.spatial_compression * self.config.output_upscale, 1
        for chunk in chunks:
            for picture in self._factors(chunk).unbind(dim=2):
                # Bicubic overshoots at edges, beyond the range of pixels.
                large = F.interpolate(picture, scale_factor=scale, mode="bicubic").clamp(-1, 1)
                yield large[:, :, None].expand(-1, -1, repeats, -1, -1)
                repeats = self.config.temporal_compression
