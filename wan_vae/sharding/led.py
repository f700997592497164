"""One process has the clips and wants the results; the others compute their parts and have nothing else to do."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget
from wan_vae.inference.dry_run import dummy_input, make_plan
from wan_vae.inference.planner import Plan
from wan_vae.inference.stream import ClipStream
from wan_vae.inference.tiling import Tiling
from wan_vae.sharding.grid import Grid, best_grid
from wan_vae.sharding.process_group import ProcessGroup, least_budget
from wan_vae.sharding.sharded_vae import Call, Share, Way, going, largest_part
from wan_vae.validation import check_latents, check_video

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE

_LEADER = 0


class _ChunkSize(NamedTuple):
    """What the leader decided: how many latents go together, if it did, and how pictures are cut, if they are."""

    latents_per_pass: int | None = None
    tiling: Tiling | None = None


class _Ask(NamedTuple):
    """The leader asks what everyone may take."""

    memory: Budget


class _Clip(NamedTuple):
    """The leader scatters a whole clip."""

    call: Call
    shape: torch.Size
    dtype: torch.dtype
    pace: _ChunkSize


class _Begin(NamedTuple):
    """The leader begins a stream, whose picture has height x width latents."""

    call: Call
    height: int
    width: int
    pace: _ChunkSize


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

    def __init__(self, vae: "WanVAE", peers: ProcessGroup) -> None:
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

    def default_chunk_size(self, height: int, width: int) -> int:
        """Return how many latents go through the network together, as `WanVAE.latents_at_once`."""
        side = self.config.spatial_compression
        grid = self._grid(-(-height // side), -(-width // side))
        return self._vae.default_chunk_size(max(grid.heights) * side, max(grid.widths) * side)

    def budget(self, memory: Budget) -> int:
        """Return in bytes what each process may take: the least that any of them may.

        Raises:
            UserError: The budget is none.
        """
        self._peers.tell(_Ask(memory))
        return least_budget(memory, self.device, self._peers)

    def plan(self, call: Call, *, frames: int, height: int, width: int, memory: int, streaming: bool = False) -> Plan:
        """Return how a call would keep to a budget of bytes in each process, as `WanVAE.plan`.

        What comes in and goes out counts where it takes more than in the others: in this one.
        """
        x = dummy_input(self._vae, call, (1, 3, frames, height, width))
        return self._make_plan(x, going(self._vae, call), memory, streaming=streaming)

    def encode(self, video: Tensor, *, memory: int | None = None) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> final latents (B, z, t, h, w), as `WanVAE.encode`.

        Args:
            video: The clip.
            memory: A budget of bytes for what the call takes in each process; see `plan`.
        """
        check_video(video, self.config, whole=True)
        return self._whole(video, going(self._vae, "encode"), memory)

    def decode(self, latents: Tensor, *, memory: int | None = None) -> Tensor:
        """Final latents (B, z, t, h, w) -> video (B, 3, T, H, W), as `WanVAE.decode`.

        Args:
            latents: The clip.
            memory: A budget of bytes for what the call takes in each process; see `plan`.
        """
        check_latents(latents, self.config, whole=True)
        return self._whole(latents, going(self._vae, "decode"), memory)

    def encode_stream(self, chunks: Iterable[Tensor], *, memory: int | None = None) -> Iterator[Tensor]:
        """Encode a clip that arrives in chunks of (B, 3, n, H, W), as `WanVAE.encode_stream`.

        Args:
            chunks: The clip.
            memory: A budget of bytes for what a chunk takes in each process; see `plan`.
        """
        return self._stream(chunks, going(self._vae, "encode"), memory)

    def decode_stream(self, chunks: Iterable[Tensor], *, memory: int | None = None) -> Iterator[Tensor]:
        """Decode final latents that arrive in chunks of (B, z, n, h, w), as `WanVAE.decode_stream`.

        Args:
            chunks: The latents.
            memory: A budget of bytes for what a chunk takes in each process; see `plan`.
        """
        return self._stream(chunks, going(self._vae, "decode"), memory)

    def dismiss(self) -> None:
        """Let the others return from `follow`."""
        self._peers.tell(None)

    def _grid(self, height: int, width: int) -> Grid:
        return best_grid(len(self._peers), height, width)

    def _whole(self, x: Tensor, way: Way, memory: int | None) -> Tensor:
        clip = _Clip(way.call, x.shape, x.dtype, self._pace(x, way, memory, streaming=False))
        share = Share(self._grid(*way.latents(x.shape)), self._peers)
        self._peers.tell(clip)
        part = _passed(clip, share.scatter(x, way.scale), way, share)
        return share.collect(part, way.becomes)

    def _stream(self, chunks: Iterable[Tensor], way: Way, memory: int | None) -> Iterator[Tensor]:
        stream, share, number = way.stream(), None, -1
        for chunk in chunks:
            way.check(chunk)
            if share is None:
                begin = _Begin(way.call, *way.latents(chunk.shape), self._pace(chunk, way, memory, streaming=True))
                stream, share = _begun(begin, way, self._peers)
                self._peers.tell(begin)
                number = next(self._numbers)
            self._peers.tell(_Chunk(number, chunk.shape, chunk.dtype))
            result = stream.push(share.scatter(chunk, way.scale))
            if result is not None:
                result = share.collect(result, way.becomes)
                yield result
                # The caller's, from here on.
                del result
        stream.flush()
        self._peers.tell(_End(number))

    def _pace(self, x: Tensor, way: Way, memory: int | None, *, streaming: bool) -> _ChunkSize:
        if memory is None:
            return _ChunkSize()
        plan = self._make_plan(x, way, memory, streaming=streaming)
        return _ChunkSize(plan.latents_per_pass, plan.tiling)

    @torch.no_grad()
    def _make_plan(self, x: Tensor, way: Way, memory: int, *, streaming: bool) -> Plan:
        part = largest_part(self._grid(*way.latents(x.shape)), way, Share.scatter, Share.collect)
        return make_plan(self._vae, way.call, x, None, memory, streaming=streaming, part=part)


def follow(vae: "WanVAE", peers: ProcessGroup) -> None:
    """Compute parts of what the first of the processes leads through its `LeadVAE`, until it dismisses the others."""
    numbers, begun = count(), {}
    while (told := peers.hear(_LEADER)) is not None:
        if isinstance(told, _Ask):
            # What is wrong with a budget, the leader says.
            with suppress(UserError):
                least_budget(told.memory, vae.device, peers)
        elif isinstance(told, _Clip):
            way = going(vae, told.call)
            share = Share(best_grid(len(peers), *way.latents(told.shape)), peers)
            given = _received(told, way, share, vae.device)
            share.hand_in(_passed(told, given, way, share), receiver=_LEADER)
        elif isinstance(told, _Begin):
            way = going(vae, told.call)
            begun[next(numbers)] = (way, *_begun(told, way, peers))
        elif isinstance(told, _Chunk):
            way, stream, share = begun[told.stream]
            part = stream.push(_received(told, way, share, vae.device))
            if part is not None:
                share.hand_in(part, receiver=_LEADER)
        else:
            del begun[told.stream]


def _begun(begin: _Begin, way: Way, peers: ProcessGroup) -> tuple[ClipStream, Share]:
    share = Share(best_grid(len(peers), begin.height, begin.width), peers)
    return way.stream(neighbors=share.neighbors, **begin.pace._asdict()), share


def _received(told: _Chunk | _Clip, way: Way, share: Share, device: torch.device) -> Tensor:
    like = torch.empty(0, dtype=told.dtype, device=device)
    return share.receive(told.shape, like, way.scale, sender=_LEADER)


@torch.no_grad()
def _passed(clip: _Clip, part: Tensor, way: Way, share: Share) -> Tensor:
    return way.whole(part, clip.pace.latents_per_pass, clip.pace.tiling, share.neighbors)
