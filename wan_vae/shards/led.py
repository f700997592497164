"""One process has the clip and wants the result; the others compute their parts of it and have nothing else to do."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.shards.grid import arranged
from wan_vae.shards.peers import Peers
from wan_vae.shards.share import Share

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE

_LEADER = 0


class _Chunk(NamedTuple):
    """What the leader tells of a chunk: where it is to go, and what it is."""

    encodes: bool
    shape: torch.Size
    dtype: torch.dtype


class LeadVAE:
    """The VAE of the first of some processes, used like one that stands alone; the others `follow`.

    Args:
        vae: The model, in eval mode.
        peers: The processes, this one the first of them.
    """

    def __init__(self, vae: "WanVAE", peers: Peers) -> None:
        assert peers.index == _LEADER, peers.index
        self._vae = vae
        self._peers = peers

    @property
    def config(self) -> VAEConfig:
        """The architecture."""
        return self._vae.config

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._vae.device

    def latents_at_once(self, height: int, width: int) -> int:
        """Return how many latents go through the network together, as `WanVAE.latents_at_once`."""
        side = self.config.spatial_compression
        grid = arranged(len(self._peers), -(-height // side), -(-width // side))
        return self._vae.latents_at_once(max(grid.heights) * side, max(grid.widths) * side)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a clip that arrives in chunks of (B, 3, n, H, W), as `WanVAE.encode_stream`."""
        return self._stream(chunks, encodes=True)

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode final latents that arrive in chunks of (B, z, n, h, w), as `WanVAE.decode_stream`."""
        return self._stream(chunks, encodes=False)

    @torch.no_grad()
    def _stream(self, chunks: Iterable[Tensor], *, encodes: bool) -> Iterator[Tensor]:
        way = _way(self._vae, encodes=encodes)
        chunks = iter(chunks)
        first = next(chunks, None)
        if first is None:
            yield from way.stream([])
            return
        share = way.share(first.shape, self._peers)

        def parts() -> Iterator[Tensor]:
            for chunk in chain([first], chunks):
                self._peers.tell(_Chunk(encodes, chunk.shape, chunk.dtype))
                yield share.scatter(chunk, way.scale)
            self._peers.tell(None)

        for part in way.stream(parts(), neighbors=share.neighbors):
            yield share.collect(part, way.becomes)


@torch.no_grad()
def follow(vae: "WanVAE", peers: Peers) -> None:
    """Compute parts of the clip that the first of the processes leads through its `LeadVAE`, until it ends."""
    first: _Chunk | None = peers.hear(_LEADER)
    if first is None:
        return
    way = _way(vae, encodes=first.encodes)
    share = way.share(first.shape, peers)

    def parts() -> Iterator[Tensor]:
        chunk: _Chunk | None = first
        while chunk is not None:
            like = torch.empty(0, dtype=chunk.dtype, device=vae.device)
            yield share.receive(chunk.shape, like, way.scale, sender=_LEADER)
            chunk = peers.hear(_LEADER)

    for part in way.stream(parts(), neighbors=share.neighbors):
        share.hand_in(part, receiver=_LEADER)


class _Way(NamedTuple):
    """A way through the network.

    Attributes:
        stream: Takes it.
        scale: Pixels of what enters to a side of a latent.
        becomes: Pixels of what comes out.
    """

    stream: Callable[..., Iterator[Tensor]]
    scale: int
    becomes: int

    def share(self, shape: torch.Size, peers: Peers) -> Share:
        """Return this process's share of what enters in this shape."""
        return Share(arranged(len(peers), shape[3] // self.scale, shape[4] // self.scale), peers)


def _way(vae: "WanVAE", *, encodes: bool) -> _Way:
    side = vae.config.spatial_compression
    if encodes:
        return _Way(vae.encode_stream, side, 1)
    return _Way(vae.decode_stream, 1, side * vae.config.output_upscale)
