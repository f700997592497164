"""Previews of latents without a network: each pixel is a linear function of one latent, which takes no weights.

RGB = bias + normalized latents @ factors, one picture per latent frame at the size of the latents, enlarged. It shows
what is where and in which color, but no detail. The factors, and where each set is from, are in `weights/preview.json`;
`scripts/fit_preview.py` fits them for other models.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.arguments import check_flag, check_path
from wan_vae.config import VAEConfig, load_config
from wan_vae.errors import LatentsError, UserError
from wan_vae.files import DecodeResult, Progress
from wan_vae.interchange.formats import Values, check_values
from wan_vae.interchange.reader import ForeignLatents, open_latents
from wan_vae.io import create_clip
from wan_vae.io.atomic_output import check_output
from wan_vae.io.frames import tensors_to_frames
from wan_vae.io.timing import exact_rate
from wan_vae.io.writer import check_clip

FACTORS_FILE = Path(__file__).parent / "weights" / "preview.json"
_MODEL_OF_CHANNELS = {16: "wan2.1", 48: "wan2.2"}  # of latents whose file names no model
_LATENTS_AT_ONCE = 8

_logger = logging.getLogger("wan_vae")


@dataclass(frozen=True)
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
        """Normalized latents (1, z, t, h, w) -> pictures (1, 3, t, h, w) in [-1, 1]."""
        rgb = torch.einsum("bzthw,zc->bcthw", latents.to(self.factors.dtype), self.factors)
        return (rgb + self.bias.view(1, 3, 1, 1, 1)).clamp(-1, 1)


def load_factors(config: VAEConfig) -> PreviewFactors:
    """Return the factors for a model's latents. Models that share their statistics share their latents.

    Raises:
        LatentsError: There are none for this model.
    """
    entries = json.loads(FACTORS_FILE.read_text(encoding="utf-8"))
    for entry in entries.values():
        if (tuple(entry["latent_mean"]), tuple(entry["latent_std"])) == (config.latent_mean, config.latent_std):
            return PreviewFactors(torch.tensor(entry["factors"]), torch.tensor(entry["bias"]), entry["origin"])
    raise LatentsError(
        f"there is no preview of this model's latents, only of those of {', '.join(entries)} and their kin; decode"
        " without --preview, or fit one with scripts/fit_preview.py."
    )


def preview(latents: Tensor, config: VAEConfig) -> Tensor:
    """Show normalized latents at their own size, one picture per latent frame.

    Args:
        latents: (1, z, t, h, w).
        config: The architecture of the model that encoded them, `vae.config`.

    Returns:
        (1, 3, t, h, w) in [-1, 1], float32.

    Raises:
        UserError: The latents are not of this shape, or there are no factors for this model.
    """
    if latents.ndim != 5 or latents.shape[1] != config.latent_channels:
        raise UserError(f"The latents are {tuple(latents.shape)}; they must be (1, {config.latent_channels}, t, h, w).")
    return load_factors(config)(latents)


def preview_file(
    latents: str | Path,
    clip: str | Path,
    *,
    fps: Fraction | float | None = None,
    values: Values | None = None,
    lossless: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DecodeResult:
    """Write a preview of a latents file: a clip of the size, length and rate that `decode_file` writes.

    Each latent is shown for as long as the frames that it stands for. Where the file does not name its model, latents
    of 16 channels are taken for those of Wan2.1 and of 48 for those of Wan2.2.

    Args:
        latents: As for `decode_file`, as are `fps`, `values`, `lossless`, `overwrite` and `progress`.
        clip: The clip to write; its ending decides the format, and none is a folder of PNG files.

    Raises:
        UserError: The latents or the clip cannot be read or written, or there is no preview for their model.
    """
    latents, clip = check_path("latents", latents), check_path("clip", clip)
    check_flag("lossless", lossless)
    check_flag("overwrite", overwrite)
    check_values(values)
    check_output(clip, overwrite=overwrite, inputs=(latents,), may_be_folder=not clip.suffix)
    source = open_latents(latents)
    if isinstance(source, ForeignLatents):
        name = _MODEL_OF_CHANNELS.get(source.shape[1])
        if name is None:
            raise LatentsError(f"{latents} has {source.shape[1]} channels; Wan2.1's have 16 and Wan2.2's 48.")
        config = load_config(name)
        info = source.clip(config, source.usual_fps if fps is None else exact_rate(fps))
        chunks = source.normalized(_LATENTS_AT_ONCE, config, source.resolve_values(config, values))
        rate = f", at {info.fps} frames a second (--fps sets others)" if fps is None and info.frames > 1 else ""
        _logger.warning(
            f"{latents}, {source.form.title}, does not say which model encoded it; it is shown as {name}'s{rate}."
        )
    else:
        if values == "raw":
            raise LatentsError(f"{latents} is a latents file of this package; its latents are normalized, not raw.")
        info = source.info if fps is None else replace(source.info, fps=exact_rate(fps))
        config, chunks = info.config, source.chunks(_LATENTS_AT_ONCE)
    check_clip(clip, fps=info.fps, lossless=lossless)
    factors = load_factors(config)
    width, height = info.width * config.output_upscale, info.height * config.output_upscale
    begun, done = time.perf_counter(), 0
    with create_clip(
        clip,
        width=width,
        height=height,
        fps=info.fps,
        color=info.color,
        pixel_aspect=info.pixel_aspect,
        lossless=lossless,
        overwrite=overwrite,
    ) as writer:
        if progress is not None:
            progress(0, info.frames)
        for frames in tensors_to_frames(_shown(chunks, factors, config), width, height, torch.device("cpu")):
            true = frames[: info.frames - done]  # the last ones are padding
            writer.write(true)
            done += len(true)
            if progress is not None:
                progress(done, info.frames)
    return DecodeResult(clip, done, width, height, info.fps, time.perf_counter() - begun)


def _shown(chunks: Iterable[Tensor], factors: PreviewFactors, config: VAEConfig) -> Iterator[Tensor]:
    """Yield videos (1, 3, n, H, W) of latents (1, z, n, h, w), one latent at a time."""
    scale, repeats = config.spatial_compression * config.output_upscale, 1
    for chunk in chunks:
        for picture in factors(chunk).unbind(dim=2):
            # Bicubic overshoots at edges, beyond the range of pixels.
            large = F.interpolate(picture, scale_factor=scale, mode="bicubic").clamp(-1, 1)
            yield large[:, :, None].expand(-1, -1, repeats, -1, -1)
            repeats = config.temporal_compression
