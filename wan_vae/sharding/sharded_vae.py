"""The VAE over several devices.

The two ways through the network, and what becomes of a picture's size on them.

One process's part of a picture, and how the parts become a picture again.

What one process has of a picture, in a rehearsal, where there are no others.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget
from wan_vae.inference.dry_run import dummy_input, make_plan
from wan_vae.inference.planner import Part, Plan
from wan_vae.inference.stream import ClipStream, DecodeStream, EncodeStream
from wan_vae.inference.tiling import Tiling
from wan_vae.model.halo import Neighbors
from wan_vae.ops.workspace import Workspace
from wan_vae.posterior import Posterior
from wan_vae.sharding.grid import Grid, best_grid, even_grid
from wan_vae.sharding.halo_exchange import HaloExchange
from wan_vae.sharding.process_group import Message, ProcessGroup, Transfers, Transport, channels_last, least_budget
from wan_vae.validation import check_latents, check_video

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from wan_vae.vae import WanVAE

Call = Literal["encode", "decode"]


class Way(NamedTuple):
    """A way through the network.

    Attributes:
        call: "encode" or "decode".
        stream: Begins to go it, with the options of `EncodeStream` and `DecodeStream`.
        whole: Goes it with all of a clip; takes that, how many latents go together, the tiling, and the neighbors.
        check: Raises a UserError for chunks that do not fit.
        scale: Pixels of what enters to a side of a latent.
        becomes: Pixels of what comes out.
    """

    call: Call
    stream: Callable[..., ClipStream]
    whole: Callable[[Tensor, int | None, Tiling | None, Neighbors], Tensor]
    check: Callable[[Tensor], None]
    scale: int
    becomes: int

    def latents(self, shape: torch.Size) -> tuple[int, int]:
        """Return how many rows and columns of latents enter in a tensor (B, C, T, H, W) of this shape."""
        return shape[3] // self.scale, shape[4] // self.scale


def going(vae: "WanVAE", call: Call) -> Way:
    """Return the way that a call goes."""
    if call == "decode":
        check = partial(check_latents, config=vae.config, whole=False)
        scale = vae.config.spatial_compression * vae.config.output_upscale
        return Way(call, partial(DecodeStream, vae), vae._decoded, check, 1, scale)

    def whole(video: Tensor, latents: int | None, tiling: Tiling | None, neighbors: Neighbors) -> Tensor:
        moments = vae._moments(video, latents, tiling, neighbors)
        return vae.normalize(Posterior.from_moments(moments).mode())

    check = partial(check_video, config=vae.config, whole=False)
    return Way(call, partial(EncodeStream, vae), whole, check, vae.config.spatial_compression, 1)


@dataclass(frozen=True)
class Share:
    """The part that this process has of a picture.

    Tensors are (B, C, T, H, W); in the whole picture's, a latent is `scale` x `scale` pixels.

    Attributes:
        grid: How the picture is cut.
        peers: Who has the parts, in their order.
    """

    grid: Grid
    peers: Transport

    @property
    def neighbors(self) -> HaloExchange:
        """What lies around this part."""
        return HaloExchange(self.grid, self.peers)

    def cut(self, whole: Tensor, scale: int) -> Tensor:
        """View this part of the picture.

        Raises:
            UserError: The picture is of another size than the one that was cut.
        """
        height, width = sum(self.grid.heights) * scale, sum(self.grid.widths) * scale
        if whole.shape[3:] != (height, width):
            raise UserError(
                f"A chunk is {tuple(whole.shape)}, but the ones before it are {height} high and {width} wide."
            )
        return self.grid.cut(whole, self.peers.index, scale)

    def gather(self, part: Tensor, scale: int) -> Tensor:
        """Take each process's part of the picture and return the whole to all of them."""
        leaving, arriving = channels_last(part), self._arriving(part, scale)
        filled = [(peer, channels_last(other)) for peer, other in arriving]
        self.peers.start([(peer, leaving) for peer in self._others()], filled).wait()
        return self._joined(part, arriving, scale)

    def _others(self) -> list[int]:
        return [peer for peer in range(len(self.peers)) if peer != self.peers.index]

    def _size(self, part: int, scale: int) -> tuple[int, int]:
        row, column = self.grid.place(part)
        return self.grid.heights[row] * scale, self.grid.widths[column] * scale

    def _arriving(self, like: Tensor, scale: int) -> list[Message]:
        # In memory of their own, which goes straight back.
        shapes = [(peer, (*like.shape[:3], *self._size(peer, scale))) for peer in self._others()]
        return [(peer, Workspace.empty_persistent(shape, like=like)) for peer, shape in shapes]

    def _joined(self, own: Tensor, others: list[Message], scale: int) -> Tensor:
        size = (sum(self.grid.heights) * scale, sum(self.grid.widths) * scale)
        whole = own.new_empty((*own.shape[:3], *size))
        for peer, part in ((self.peers.index, own), *others):
            self.grid.cut(whole, peer, scale).copy_(part)
        return whole


CutOrJoin = Callable[[Share, Tensor, int], Tensor]
"""Takes a share, a tensor, and its pixels to a side of a latent: a method of `Share`."""


class DryTransport:
    """Carries nothing, and holds what it would carry meanwhile.

    Args:
        count: How many there would be.
        index: Of this one.
    """

    def __init__(self, count: int, index: int) -> None:
        self._count = count
        self.index = index

    def __len__(self) -> int:
        return self._count

    def start(self, sent: Iterable[Message], filled: Iterable[Message]) -> Transfers:
        return Transfers([], [tensor for messages in (sent, filled) for _, tensor in messages])


def largest_part(grid: Grid, way: Way, cut: CutOrJoin, join: CutOrJoin) -> Part:
    """Return a part that takes as much memory as any of a picture's, or more: a largest one, with most neighbors.

    Args:
        grid: How the picture is cut.
        way: What is done with it.
        cut: How a process comes by its part, such as `Share.cut`.
        join: What becomes of the result, such as `Share.gather`.
    """
    # The same parts in another order, so that the largest has neighbors on both sides, if any has.
    inner = Grid(_largest_inside(grid.heights), _largest_inside(grid.widths))
    index = inner.part_at(min(1, grid.rows - 1), min(1, grid.columns - 1))
    assert index is not None
    share = Share(inner, DryTransport(grid.rows * grid.columns, index))
    return Part(
        share.neighbors,
        inner.beyond(index),
        lambda whole: cut(share, whole, way.scale),
        lambda part: join(share, part, way.becomes),
    )


def _largest_inside(sizes: tuple[int, ...]) -> tuple[int, ...]:
    first, *others = sorted(sizes)
    return (first, *reversed(others))


class ShardedVAE:
    """A VAE whose clips are cut in parts, each computed by a process of its own (`WanVAE.shard`).

    It is used like the VAE itself, in all processes at once: each passes the same whole clip, computes its part on the
    device where its weights are, and gets the whole result. Results are those of one device, to rounding. There are no
    gradients.

    Height and width are cut along the latents' grid, in parts that differ by a row or column of latents at most.

    Args:
        vae: The model, with the same weights in every process, in eval mode.
        mesh: See `WanVAE.shard`.
        gather: See `WanVAE.shard`.
    """

    def __init__(self, vae: "WanVAE", mesh: "DeviceMesh | None" = None, *, gather: bool = True) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise UserError(
                "There is no process group to share clips with; start the program with torchrun, and call"
                " torch.distributed.init_process_group first."
            )
        if vae.training:
            raise UserError("A model in training mode cannot share clips among processes; call its eval() first.")
        self._vae = vae
        self._joined: CutOrJoin = Share.gather if gather else _left
        self._peers, self._shape = _members(mesh)

    @property
    def config(self) -> VAEConfig:
        """The architecture."""
        return self._vae.config

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._vae.device

    @property
    def rank(self) -> int:
        """The rank of this process among those that share the clip."""
        return self._peers.index

    def digest(self) -> str:
        """Return the digest of the checkpoint, as `WanVAE.digest`."""
        return self._vae.digest()

    def default_chunk_size(self, height: int, width: int) -> int:
        """Return how many latents of a video pass through the network together, as `WanVAE.default_chunk_size`."""
        side = self.config.spatial_compression
        grid = self.share(-(-height // side), -(-width // side)).grid
        return self._vae.default_chunk_size(max(grid.heights) * side, max(grid.widths) * side)

    def budget(self, memory: Budget) -> int:
        """Return in bytes what each process may take: the least of all their budgets. All processes must call it.

        Raises:
            UserError: In all processes, if one has no valid budget.
        """
        return least_budget(memory, self.device, self._peers)

    def encode(self, video: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> final latents (B, z, t, h, w), as `WanVAE.encode`.

        Args:
            video: The clip.
            latents_per_pass: How many latents go through the network together, or at most, if there is a budget.
            memory: A budget for all that the call takes in this process beside the loaded model and `video`: the
                latents, what others send of theirs, and what is exchanged on the way included. Bytes, text such as
                "4GiB", or "auto" for what the device has left. It may differ between processes; as all go in step,
                they go as the least of them allows (see `plan`).

        Raises:
            UserError: T, H or W does not fit, the picture is too small for so many processes, or the budget is too
                small; the message, which all processes give, says what would do.
        """
        check_video(video, self.config, whole=True)
        return self._whole(video, going(self._vae, "encode"), latents_per_pass, memory)

    def decode(self, latents: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None) -> Tensor:
        """Final latents (B, z, t, h, w) -> video (B, 3, T, H, W), as `WanVAE.decode`.

        Args:
            latents: The clip.
            latents_per_pass: How many of them go through the network together, or at most, if there is a budget.
            memory: A budget for all that the call takes in this process beside the loaded model and `latents`, as for
                `encode`. The video of the whole picture, with `gather`, may take more than to compute a part of it.

        Raises:
            UserError: The latents are not this model's, the picture is too small for so many processes, or the budget
                is too small; the message, which all processes give, says what would do.
        """
        check_latents(latents, self.config, whole=True)
        return self._whole(latents, going(self._vae, "decode"), latents_per_pass, memory)

    def encode_stream(
        self, chunks: Iterable[Tensor], *, latents_per_pass: int | None = None, memory: Budget | None = None
    ) -> Iterator[Tensor]:
        """Encode a clip that arrives in chunks of (B, 3, n, H, W), as `WanVAE.encode_stream`.

        Args:
            chunks: The clip.
            latents_per_pass: How many latents go through the network together, or at most, if there is a budget.
            memory: A budget for all that a chunk of as many latents takes in this process beside the model and the
                chunk; see `encode`.
        """
        return self._stream(chunks, going(self._vae, "encode"), latents_per_pass, memory)

    def decode_stream(
        self, chunks: Iterable[Tensor], *, latents_per_pass: int | None = None, memory: Budget | None = None
    ) -> Iterator[Tensor]:
        """Decode final latents that arrive in chunks of (B, z, n, h, w), as `WanVAE.decode_stream`.

        Args:
            chunks: The latents.
            latents_per_pass: How many of them go through the network together, or at most, if there is a budget.
            memory: A budget for all that a chunk of as many latents takes in this process beside the model and the
                chunk; see `decode`.
        """
        return self._stream(chunks, going(self._vae, "decode"), latents_per_pass, memory)

    def plan(
        self,
        call: Call,
        *,
        frames: int,
        height: int,
        width: int,
        memory: Budget,
        batch: int = 1,
        latents_per_pass: int | None = None,
        streaming: bool = False,
    ) -> Plan:
        """Return how a call would keep to a budget of memory, as `WanVAE.plan`. All processes must ask.

        The plan is that of a part for which most is held; `overhead` and `peak` are that part's, `budget` is the least
        of all processes'.

        Raises:
            UserError: The size does not fit, the picture is too small for so many processes, or the budget is too
                small; the message, which all processes give, says what would do.
        """
        way = going(self._vae, call)
        x = dummy_input(self._vae, call, (batch, 3, frames, height, width))
        self._peers.check_alike(f"a plan for {tuple(x.shape)}")
        share = self.share(*way.latents(x.shape))
        with torch.no_grad():
            return self._make_plan(x, way, share, latents_per_pass, memory, streaming=streaming)

    def share(self, height: int, width: int) -> Share:
        """Return which part this process has of a picture of height x width latents.

        Raises:
            UserError: The picture is too small for so many processes.
        """
        if self._shape is None:
            return Share(best_grid(len(self._peers), height, width), self._peers)
        return Share(even_grid(*self._shape, height, width), self._peers)

    def _whole(self, x: Tensor, way: Way, latents_per_pass: int | None, memory: Budget | None) -> Tensor:
        if self._vae._records(x):
            raise UserError(
                "Clips in shards pass without gradients; call it inside torch.no_grad(), or turn off requires_grad."
            )
        share, tiling = self._shared(x, way, memory), None
        with torch.no_grad():
            if memory is not None:
                plan = self._make_plan(x, way, share, latents_per_pass, memory, streaming=False)
                latents_per_pass, tiling = plan.latents_per_pass, plan.tiling
            part = way.whole(share.cut(x, way.scale), latents_per_pass, tiling, share.neighbors)
            return self._joined(share, part, way.becomes)

    def _stream(
        self, chunks: Iterable[Tensor], way: Way, latents_per_pass: int | None, memory: Budget | None
    ) -> Iterator[Tensor]:
        stream, share = way.stream(latents_per_pass=latents_per_pass), None
        for chunk in chunks:
            way.check(chunk)
            if share is None:
                share, tiling = self._shared(chunk, way, memory), None
                if memory is not None:
                    with torch.no_grad():
                        plan = self._make_plan(chunk, way, share, latents_per_pass, memory, streaming=True)
                    latents_per_pass, tiling = plan.latents_per_pass, plan.tiling
                stream = way.stream(latents_per_pass=latents_per_pass, neighbors=share.neighbors, tiling=tiling)
            result = stream.push(share.cut(chunk, way.scale))
            if result is not None:
                result = self._joined(share, result, way.becomes)
                yield result
                # The caller's, from here on.
                del result
        stream.flush()

    def _shared(self, x: Tensor, way: Way, memory: Budget | None) -> Share:
        budget = "no budget" if memory is None else "a budget"
        self._peers.check_alike(f"{way.call} of {tuple(x.shape)} in {x.dtype} with {budget} of memory")
        return self.share(*way.latents(x.shape))

    def _make_plan(
        self, x: Tensor, way: Way, share: Share, latents_per_pass: int | None, memory: Budget, *, streaming: bool
    ) -> Plan:
        budget = least_budget(memory, self._vae.device, self._peers)
        plan: Plan | str = ""
        # One decides, for two might not find the same: they may have different processors.
        if self._peers.index == 0:
            try:
                part = largest_part(share.grid, way, Share.cut, self._joined)
                plan = make_plan(self._vae, way.call, x, latents_per_pass, budget, streaming=streaming, part=part)
            except UserError as error:
                plan = str(error)
        plan = self._peers.told(plan)[0]
        if isinstance(plan, str):
            raise UserError(plan)
        return plan


def _left(share: Share, part: Tensor, scale: int) -> Tensor:
    """Leave a part where it is."""
    return part


def _members(mesh: "DeviceMesh | None") -> tuple[ProcessGroup, tuple[int, int] | None]:
    """Return the processes of a mesh and, if they are in rows and columns, how many of these there are."""
    if mesh is None:
        return ProcessGroup(range(dist.get_world_size())), None
    if mesh.ndim > 2:
        raise UserError(f"The mesh has {mesh.ndim} dimensions; a picture is cut in rows and columns, so 1 or 2 fit.")
    ranks = mesh.mesh.flatten().tolist()
    if dist.get_rank() not in ranks:
        raise UserError(f"Process {dist.get_rank()} is not in the mesh, which holds {ranks}; call shard in those only.")
    if mesh.ndim == 1:
        return ProcessGroup(ranks, mesh.get_group()), None
    if len(ranks) != dist.get_world_size():
        raise UserError(
            f"A mesh of rows and columns must hold all {dist.get_world_size()} processes, but this one holds"
            f" {len(ranks)}; take one of a single dimension, which is arranged by itself."
        )
    rows, columns = mesh.mesh.shape
    return ProcessGroup(ranks), (rows, columns)
