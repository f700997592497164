"""`wan-vae pack`: a cache of latents to shards."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from wan_vae.cli import options
from wan_vae.cli.common import Progress, parse_bytes_of, print_result

ShardFormat = Literal["parquet", "webdataset", "fastvideo"]
"""A format of shards."""


def pack(
    cache: Annotated[Path, typer.Argument(help="A cache of --format wan-vae or tensor.", metavar="CACHE")],
    out: Annotated[Path, typer.Argument(help="The folder of the shards.", metavar="OUT")],
    format: Annotated[ShardFormat, typer.Option(help="What the shards are.")] = "parquet",  # noqa: A002
    shard_size: Annotated[
        str, typer.Option(help="Latents in a shard, at most, such as 1GiB.", metavar="SIZE")
    ] = "1GiB",
    text: Annotated[
        Path | None,
        typer.Option(help="For fastvideo: a folder with a text embedding for each clip, .safetensors or .npy."),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write the items of a cache into shards.

    They are for training that streams. What is in OUT already and fits is kept.
    """
    from wan_vae.dataset import pack_latents

    with Progress("packing", "item") as progress:
        result = pack_latents(
            cache,
            out,
            format=format,
            shard_size=parse_bytes_of(shard_size, "--shard-size"),
            text=text,
            progress=progress,
        )
    print_result({"output": out, **vars(result)}, as_json=as_json)
