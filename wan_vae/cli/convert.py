"""`wan-vae convert`: a checkpoint in another layout."""

from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.common import print_result
from wan_vae.io.atomic_output import check_output


def convert(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint in any layout, or the name of a published one.", metavar="CHECKPOINT")
    ],
    out: Annotated[
        Path, typer.Argument(help="A .safetensors file, or a folder for the layout diffusers.", metavar="OUT")
    ],
    layout: Annotated[options.Layout, typer.Option(help="The naming of the weights in OUT.")],
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Write a checkpoint in another layout, bit for bit."""
    may_be_folder = layout == "diffusers" and not out.suffix
    check_output(out, overwrite=overwrite, inputs=(Path(checkpoint),), may_be_folder=may_be_folder, must_be_utf8=True)

    from wan_vae.cli.messages import Bar

    with Bar(unit="tensor"):
        from wan_vae.checkpoints import load_checkpoint, write_checkpoint

        found = load_checkpoint(checkpoint)
        write_checkpoint(out, found.config, found.weights, layout=layout, overwrite=overwrite)
    result = {"output": out, "layout": layout, "tensors": len(found.weights), "from_layout": found.layout}
    print_result(result, as_json=as_json)
