"""A server of a small random model in a thread."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tests.helpers import random_vae, small_config
from wan_vae import WanVAE
from wan_vae.serving.app import Limits, Server, make_server


def small_vae() -> WanVAE:
    return random_vae(small_config(), torch.float32)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(vae: WanVAE, token: str | None = None, **limits: float) -> Iterator[str]:
    """Yield the address of a server, which is stopped afterwards."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = make_server(Server(vae, "auto", Limits(**limits), "small"), token)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:  # a test that fails must not leave a thread that the process waits for
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def latents_of(vae: WanVAE, count: int = 2, side: int = 4) -> torch.Tensor:
    """Return raw latents."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, vae.config.latent_channels, count, side, side, generator=generator)
