"""One process has the clips and wants the results; the others compute their parts and have nothing else to do."""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from wan_vae.clip_stream import ClipStream
from wan_vae.config import VAEConfig
from wan_vae.shards.grid import arranged
from wan_vae.shards.peers import Peers
from wan_vae.shards.share import Share
from wan_vae.shards.way import Way, decoding, encoding

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE

_LEADER = 0


class _Begin(NamedTuple):
    """The leader begins a stream, whose picture has height x width latents."""

    encodes: bool
    height: int
    width: int


class _Chunk(NamedTuple):
    """The leader scatters a chunk of a stream."""

    stream: int
    shape: torch.Size
    dtype: torch.dtype


class _End(NamedTuple):
    """A stream has ended."""

    stream: int


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
        self._numbers = count()

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

    def dismiss(self) -> None:
        """Let the others return from `follow`."""
        self._peers.tell(None)

    def _stream(self, chunks: Iterable[Tensor], *, encodes: bool) -> Iterator[Tensor]:
        way = _way(self._vae, encodes=encodes)
        stream, share, number = way.stream(), None, -1
        for chunk in chunks:
            way.check(chunk)
            if share is None:
                begin = _Begin(encodes, *way.latents(chunk.shape))
                stream, share = _begun(begin, way, self._peers)
                self._peers.tell(begin)
                number = next(self._numbers)
            self._peers.tell(_Chunk(number, chunk.shape, chunk.dtype))
            part = stream.push(share.scatter(chunk, way.scale))
            if part is not None:
                yield share.collect(part, way.becomes)
        stream.flush()
        self._peers.tell(_End(number))


def follow(vae: "WanVAE", peers: Peers) -> None:
    """Compute parts of what the first of the processes leads through its `LeadVAE`, until it dismisses the others."""
    numbers, begun = count(), {}
    while (told := peers.hear(_LEADER)) is not None:
        if isinstance(told, _Begin):
            way = _way(vae, encodes=told.encodes)
            begun[next(numbers)] = (way, *_begun(told, way, peers))
        elif isinstance(told, _Chunk):
            way, stream, share = begun[told.stream]
            like = torch.empty(0, dtype=told.dtype, device=vae.device)
            part = stream.push(share.receive(told.shape, like, way.scale, sender=_LEADER))
            if part is not None:
                share.hand_in(part, receiver=_LEADER)
        else:
            del begun[told.stream]


def _begun(begin: _Begin, way: Way, peers: Peers) -> tuple[ClipStream, Share]:
    share = Share(arranged(len(peers), begin.height, begin.width), peers)
    return way.stream(neighbors=share.neighbors), share


def _way(vae: "WanVAE", *, encodes: bool) -> Way:
    return encoding(vae) if encodes else decoding(vae)
