"""The compiled CPU kernels, which the command line builds for itself; a library must leave that to its user."""

import typer

from wan_vae.errors import UserError


def build_kernels_once() -> None:
    """Compile the CPU kernels, unless that was done before; it takes some seconds. Without a compiler it goes on."""
    from wan_vae.ops import native

    if native.library() is not None:
        return
    try:
        native.build_kernels()
    except UserError as error:
        reason = str(error).splitlines()[0]
        typer.echo(f"wan-vae: without the compiled CPU kernels, which are faster: {reason}", err=True)
