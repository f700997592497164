"""`wan-vae serve`: a model behind HTTP."""

import os
import socket
import sys
from contextlib import suppress
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.common import load_model, parse_bytes_of
from wan_vae.errors import UserError

TOKEN = "WAN_VAE_TOKEN"
"""The environment variable with the token; an option would show it to everyone who lists processes."""

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    checkpoint_values: options.CheckpointValuesOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    memory: options.MemoryOption = "auto",
    host: Annotated[str, typer.Option(help="Address to listen at; others than loopback need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 8000,
    insecure: Annotated[
        bool, typer.Option("--insecure", help=f"Serve everyone who reaches --host, without a token in {TOKEN}.")
    ] = False,
    max_body: Annotated[
        str, typer.Option(help="Most bytes of a request, and of an answer that is a tensor.", metavar="SIZE")
    ] = "512MiB",
    max_pixels: Annotated[int, typer.Option(help="Most pixels of a picture.", metavar="N", min=1)] = 2**21,
    max_frames: Annotated[int, typer.Option(help="Most frames of a request.", metavar="N", min=1)] = 10_000,
    max_waiting: Annotated[int, typer.Option(help="Most requests at a time; others get 429.", metavar="N", min=1)] = 64,
    max_seconds: Annotated[float, typer.Option(help="Most seconds for a request.", metavar="N", min=1)] = 600.0,
) -> None:
    """Serve a model over HTTP, to diffusers and others.

    To diffusers' remote_decode and remote_encode, and to streams; see docs/serving.md.

    A token in the environment variable WAN_VAE_TOKEN is asked of every client.
    """
    token = os.environ.get(TOKEN) or None
    if host not in _LOOPBACK and token is None and not insecure:
        raise UserError(
            f"--host {host} may be reached from other machines; set a token in {TOKEN}, or pass --insecure if everyone"
            " may use the server."
        )
    try:
        from wan_vae.serving.app import Limits, Server, make_server
    except ImportError as error:
        raise UserError(f"{error}; install the server's packages: pip install 'wan-vae[serve]'") from error
    from wan_vae.inference.budget import parse_bytes

    body = parse_bytes_of(max_body, "--max-body")
    bound = _bind(host, port)
    model = load_model(checkpoint, device=device, dtype=dtype, values=checkpoint_values)
    if model.config.image_channels != 3:
        raise UserError(f"{checkpoint} is a model of pictures with alpha, which the protocol cannot carry.")
    parse_bytes(memory, model.device)  # to refuse it now, not in every request
    limits = Limits(body=body, pixels=max_pixels, frames=max_frames, waiting=max_waiting, seconds=max_seconds)
    server = make_server(Server(model, memory, limits, checkpoint), token)
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {checkpoint} at http://{shown}:{port}; Ctrl-C ends it", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once all is done
        server.run(sockets=[bound])


def _bind(host: str, port: int) -> socket.socket:
    """Take a port before a model is loaded for it; it answers nobody until the server runs."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":  # elsewhere this would share the port with another server
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, UnicodeError) as error:
        bound.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"No server can listen at --host {host} --port {port} ({reason}); name an address of this machine and a"
            " port that is free."
        ) from error
    return bound
