"""Show in docs/sharding.md what several devices compute and send."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from wan_vae.cli import main
from wan_vae.config import VAEConfig, load_config
from wan_vae.errors import UserError
from wan_vae.io.atomic_output import written_beside
from wan_vae.model.halo import CachedHalo
from wan_vae.ops.memory_estimator import MemoryEstimator
from wan_vae.sharding.grid import Grid, best_grid
from wan_vae.sharding.halo_exchange import HaloExchange
from wan_vae.sharding.sharded_vae import DryTransport
from wan_vae.vae import WanVAE

if TYPE_CHECKING:
    from wan_vae.sharding.process_group import Message, Transfers

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "sharding.md"
SIZES = {"720p": (720, 1280), "4K": (2160, 3840)}
DEVICES = (2, 4, 8)
app = typer.Typer(name="sharding_table", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def sharding_table(
    checkpoint: Annotated[str, typer.Option(help="A preset, or a config's YAML file.")] = "wan2.1",
    frames: Annotated[int, typer.Option(help="Frames of the clip: 1 + 4k.")] = 81,
    tera: Annotated[float, typer.Option(help="TFLOP/s of each device.")] = 400,
    document: Annotated[Path, typer.Option(help="The Markdown file with the marks.")] = DOCUMENT,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if something would change.")] = False,
) -> None:
    """Replace the marked part of DOCUMENT by a table of what is computed and sent."""
    before = document.read_text(encoding="utf-8")
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows(checkpoint, frames, tera * 1e12))
    after, found = re.subn(r"(<!-- table -->\n).*(<!-- /table -->)", rf"\g<1>{table}\2", before, flags=re.DOTALL)
    if not found:
        raise UserError(f"{document} has no marks <!-- table --> and <!-- /table -->; name the file that has them.")
    if check:
        if after != before:
            raise UserError(f"{document} is not up to date; run python scripts/sharding_table.py.")
        return
    with written_beside(document) as beside:
        beside.write_text(after, encoding="utf-8")


def rows(checkpoint: str, frames: int, flops_per_second: float) -> Iterator[list[str]]:
    yield ["", "devices", "parts", "TFLOP", "computes, s", "sends, GB", "balance, GB/s", "no gain, GB/s", "result, GB"]
    yield ["---", "---:", "---", *["---:"] * 6]
    for name, (height, width) in SIZES.items():
        for encodes in (True, False):
            found = scaling(
                load_config(checkpoint), encodes=encodes, frames=frames, height=height, width=width, devices=DEVICES
            )
            for index, each in enumerate(found):
                yield [
                    f"{name} {'encode' if encodes else 'decode'}",
                    str(DEVICES[index]),
                    f"{each.grid.rows}x{each.grid.columns}",
                    f"{each.flops / 1e12:.0f}",
                    f"{each.seconds(flops_per_second):.2f}",
                    f"{each.sent / 1e9:.2f}",
                    f"{each.balance(flops_per_second) / 1e9:.2f}",
                    f"{no_gain(found[index - 1], each, flops_per_second) / 1e9:.2f}" if index > 0 else "",
                    f"{each.result / 1e9:.2f}",
                ]


@dataclass(frozen=True)
class Scaling:
    """Largest share of any device, for one grid."""

    grid: Grid
    flops: float  # by its share of the pixels
    sent: int  # bytes sent to other devices during the pass
    result: int  # bytes sent at the end if all devices get the whole result

    def seconds(self, flops_per_second: float) -> float:
        """Return the time to compute."""
        return self.flops / flops_per_second

    def balance(self, flops_per_second: float) -> float:
        """Return the bytes per second at which sending takes as long as computing."""
        return self.sent / self.seconds(flops_per_second)


def no_gain(fewer: Scaling, more: Scaling, flops_per_second: float) -> float:
    """Return the bytes per second below which more devices take longer, if transfers and computation do not overlap."""
    saved = fewer.seconds(flops_per_second) - more.seconds(flops_per_second)
    return max(0.0, (more.sent - fewer.sent) / saved)


def scaling(
    config: VAEConfig,
    *,
    encodes: bool,
    frames: int,
    height: int,
    width: int,
    devices: Sequence[int],
    dtype: torch.dtype = torch.bfloat16,
) -> list[Scaling]:
    """Return the largest share for each number of devices that encode, or decode, frames x height x width pixels.

    Raises:
        UserError: The size does not fit, or is too small for so many devices.
    """
    with torch.device("meta"):
        vae = WanVAE(config).to(dtype).eval().requires_grad_(False)
    side, latents = config.spatial_compression, 1 + (frames - 1) // config.temporal_compression
    values = config.latent_channels * latents if encodes else 3 * frames * (side * config.output_upscale) ** 2
    height, width = height // side, width // side
    flops, _ = dry_run(vae, Grid((height,), (width,)), 0, encodes=encodes, frames=frames)
    found = []
    for count in devices:
        grid = best_grid(count, height, width)
        largest = max(grid.latent_pixels)
        sent = max(dry_run(vae, grid, part, encodes=encodes, frames=frames)[1] for part in range(count))
        result = largest * values * (count - 1) * dtype.itemsize
        found.append(Scaling(grid, flops * largest / (height * width), sent, result))
    return found


def dry_run(vae: WanVAE, grid: Grid, part: int, *, encodes: bool, frames: int) -> tuple[int, int]:
    """Return the FLOPs of one part of a clip and the bytes it sends, from a pass on the meta device.

    Args:
        vae: The model, on the meta device, in the dtype of the pass.
        grid: The grid of parts of the picture.
        part: Index of the part.
        encodes: Encode instead of decode.
        frames: Frames of the clip: 1 + 4k.
    """
    transport = CountingTransport(grid.rows * grid.columns, part)
    halo = CachedHalo(HaloExchange(grid, transport))
    unit, side = (vae.config.temporal_compression, vae.config.spatial_compression) if encodes else (1, 1)
    channels = 3 if encodes else vae.config.latent_channels
    length = frames if encodes else 1 + (frames - 1) // vae.config.temporal_compression
    rows, columns = (span.stop - span.start for span in grid.area(part, side))
    clip = torch.empty(1, channels, length, rows, columns, dtype=vae.dtype, device="meta")
    # A GPU has no fast path with fewer operations. The chunks are of a stream: its first two latents cost less.
    with MemoryEstimator(torch.device("cuda"), [*vae.parameters(), clip]) as estimator:
        for chunk in clip.tensor_split([at for at in (1, 1 + unit) if at < length], dim=2):
            vae.moments(chunk, halo) if encodes else vae.pixels(chunk, halo)
            halo.advance()
    return estimator.operations, transport.bytes_sent


class CountingTransport(DryTransport):
    """Sends nothing, and counts the bytes that it would send."""

    def __init__(self, count: int, index: int) -> None:
        super().__init__(count, index)
        self.bytes_sent = 0

    def start(self, sent: "Iterable[Message]", filled: "Iterable[Message]") -> "Transfers":
        sent = list(sent)
        self.bytes_sent += sum(tensor.nbytes for _, tensor in sent)
        return super().start(sent, filled)


if __name__ == "__main__":
    main(program=app)
