"""Fit the linear map from a model's latents to RGB that `wan-vae decode --preview` shows, by least squares."""

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.cli import main
from wan_vae.io import open_clip
from wan_vae.io.atomic_output import written_beside
from wan_vae.io.frames import frames_to_tensor
from wan_vae.preview import FACTORS_FILE, PreviewFactors
from wan_vae.vae import WanVAE

app = typer.Typer(name="fit_preview", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def fit_preview(
    clips: Annotated[list[Path], typer.Argument(help="Videos and images; every fifth only measures.")],
    checkpoint: Annotated[str, typer.Option(help="A preset, or a file or folder of its weights.")] = "nano",
    name: Annotated[str, typer.Option(help="The preset whose factors are replaced.")] = "nano",
    origin: Annotated[str, typer.Option(help="What the factors were fitted on, to be kept with them.")] = "",
    frames: Annotated[int, typer.Option(help="Frames of each clip, from its start.")] = 17,
    side: Annotated[int, typer.Option(help="Pixels of the shorter side.")] = 256,
    output: Annotated[Path, typer.Option(help="The file of factors, which is changed.")] = FACTORS_FILE,
) -> None:
    """Fit RGB of the clips, averaged over the pixels and frames of each latent, to the latents of a model."""
    vae = WanVAE.from_pretrained(checkpoint)
    size = vae.config.latent_channels + 1  # the last column is the bias
    gram, moment = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, 3, dtype=torch.float64)
    held_out = []
    for index, clip in enumerate(sorted(clips)):
        latents, pictures = pair(vae, clip, frames, side)
        columns, colors = flat(latents), flat(pictures)[:, :3]
        if index % 5 == 4:
            held_out.append((latents, pictures))
        else:
            # Clips count alike, whatever their size.
            gram += columns.T @ columns / len(columns)
            moment += columns.T @ colors / len(columns)
    solution = torch.linalg.lstsq(gram, moment).solution.float()
    fitted = PreviewFactors(solution[:-1], solution[-1], origin)
    errors = [float((fitted(latents) - pictures).square().mean()) / 4 for latents, pictures in held_out]
    if errors:
        print(f"PSNR of clips held out, at the latents' size: {-10 * torch.tensor(errors).log10().mean():.2f} dB")
    content = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    rounded = [[round(value, 4) for value in row] for row in solution.tolist()]
    statistics = {key: list(getattr(vae.config, key)) for key in ("latent_mean", "latent_std")}
    content[name] = {"origin": origin, **statistics, "bias": rounded[-1], "factors": rounded[:-1]}
    with written_beside(output) as temporary:
        temporary.write_text(to_json(content), encoding="utf-8")


def pair(vae: WanVAE, clip: Path, frames: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a clip's normalized latents (1, z, t, h, w) and its mean colors (1, 3, t, h, w)."""
    step, unit = vae.config.spatial_compression, vae.config.temporal_compression
    with open_clip(clip) as opened:
        width, height, count = opened.info.width, opened.info.height, opened.info.frames
    scale = side / min(width, height)
    size = tuple(max(step, round(pixels * scale / step) * step) for pixels in (width, height))
    count = 1 + (min(count, frames) - 1) // unit * unit
    with open_clip(clip, size=size, frames=(0, count)) as opened:
        video = torch.cat([frames_to_tensor(chunk) for chunk in opened.chunks(unit)], dim=2)
    small = F.avg_pool3d(video, (1, step, step))
    first, rest = small[:, :, :1], small[:, :, 1:]
    pictures = torch.cat([first, F.avg_pool3d(rest, (unit, 1, 1))], dim=2) if rest.shape[2] else first
    return vae.encode(video).float(), pictures


def flat(values: torch.Tensor) -> torch.Tensor:
    """(1, c, t, h, w) -> (t h w, c + 1), with ones as the last column."""
    rows = values[0].flatten(1).T.double()
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)


def to_json(content: dict[str, dict[str, object]]) -> str:
    """Return JSON with one line for the numbers of each latent channel."""
    entries = []
    for name, entry in content.items():
        rows = ",\n".join(f"      {json.dumps(row)}" for row in entry["factors"])
        rest = "".join(f"    {json.dumps(key)}: {json.dumps(entry[key])},\n" for key in entry if key != "factors")
        entries.append(f'  {json.dumps(name)}: {{\n{rest}    "factors": [\n{rows}\n    ]\n  }}')
    return "{\n" + ",\n".join(entries) + "\n}\n"


if __name__ == "__main__":
    main(program=app)
