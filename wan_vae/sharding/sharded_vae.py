"""The VAE over several devices: every rank computes one part of every picture."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor

from wan_vae.arguments import check_count, check_flag, check_type
from wan_vae.checkpoints import weights_digest
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget
from wan_vae.inference.chunk_size import check_latents_per_pass, choose_chunk_size
from wan_vae.inference.dry_run import dummy_input, make_plan
from wan_vae.inference.passes import Direction, decode_video, encode_moments, records_gradients
from wan_vae.inference.planner import Part, Plan
from wan_vae.inference.stream import ClipStream, DecodeStream, EncodeStream
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.ops.workspace import Workspace
from wan_vae.posterior import LatentStatistics
from wan_vae.sharding.grid import Grid, best_grid, even_grid
from wan_vae.sharding.halo_exchange import HaloExchange
from wan_vae.sharding.process_group import Message, ProcessGroup, Transfers, Transport, channels_last, min_budget
from wan_vae.validation import check_device, check_latents, check_video

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Share:
    """This rank's part of a picture. Tensors are (B, C, T, H, W); `scale` is the pixels of a latent's side.

    Attributes:
        grid: How the picture is cut.
        transport: Connects the ranks that hold the parts.
    """

    grid: Grid
    transport: Transport

    @property
    def neighbors(self) -> HaloExchange:
        """The holders of the pixels around this part."""
        return HaloExchange(self.grid, self.transport)

    def cut(self, whole: Tensor, scale: int) -> Tensor:
        """Return a view of this part of the picture.

        Raises:
            UserError: The picture has another size than the grid.
        """
        height, width = sum(self.grid.heights) * scale, sum(self.grid.widths) * scale
        if whole.shape[3:] != (height, width):
            raise UserError(
                f"A chunk is {tuple(whole.shape)}, but the ones before it are {height} high and {width} wide."
            )
        return self.grid.cut(whole, self.transport.rank, scale)

    def gather(self, part: Tensor, scale: int) -> Tensor:
        """Exchange the parts of a result and return the whole picture, on every rank."""
        others = [rank for rank in range(self.transport.world_size) if rank != self.transport.rank]
        arriving = []
        for rank in others:
            row, column = self.grid.place(rank)
            size = self.grid.heights[row] * scale, self.grid.widths[column] * scale
            # In memory that is freed at once.
            arriving.append((rank, Workspace.empty_persistent((*part.shape[:3], *size), like=part)))
        leaving, filled = channels_last(part), [(rank, channels_last(other)) for rank, other in arriving]
        self.transport.start([(rank, leaving) for rank in others], filled).wait()
        size = (sum(self.grid.heights) * scale, sum(self.grid.widths) * scale)
        whole = part.new_empty((*part.shape[:3], *size))
        for rank, other in ((self.transport.rank, part), *arriving):
            self.grid.cut(whole, rank, scale).copy_(other)
        return whole


class ShardedVAE:
    """A VAE whose clips are cut into parts, each computed by its own process (`WanVAE.shard`).

    It is used like the VAE itself, on all ranks at once: each passes the same whole clip, computes its part on the
    device of its weights, and gets the whole result. Results equal those of one device up to rounding. There are no
    gradients. Pictures are cut along the latents' grid, into parts that differ by one row or column at most.

    Args:
        model: The model, with the same weights on every rank, in eval mode.
        mesh: See `WanVAE.shard`.
        gather: See `WanVAE.shard`.
        digest: Returns the digest of the weights, as `WanVAE.digest` does; default that of the weights as they are.
    """

    def __init__(
        self,
        model: Autoencoder,
        mesh: "DeviceMesh | None" = None,
        *,
        gather: bool = True,
        digest: Callable[[], str] | None = None,
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise UserError(
                "There is no process group to share clips with; start the program with torchrun, and call"
                " torch.distributed.init_process_group first."
            )
        check_type("model", model, Autoencoder, "a model, such as WanVAE.from_pretrained(...)")
        check_flag("gather", gather)
        if model.training:
            raise UserError("A model in training mode cannot share clips among processes; call its eval() first.")
        self._model = model
        self._gather = gather
        self._digest = digest
        self._group, self._shape = _members(mesh)

    @property
    def rank(self) -> int:
        """This process's place among the ranks that share clips."""
        return self._group.rank

    @property
    def config(self) -> VAEConfig:
        """The architecture."""
        return self._model.config

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self._model.device

    def default_chunk_size(self, height: int, width: int) -> int:
        """Return the latents per pass for a video of height x width pixels, as `WanVAE.default_chunk_size`."""
        height, width = check_count("height", height), check_count("width", width)
        side = self.config.spatial_compression
        grid = self.share(-(-height // side), -(-width // side)).grid
        return choose_chunk_size(self._model, max(grid.latent_pixels), None, free=0).frames

    def budget(self, memory: Budget) -> int:
        """Return the least budget of all ranks in bytes; all ranks must call it.

        Raises:
            UserError: On all ranks, if the budget of any is not possible.
        """
        return min_budget(memory, self.device, self._group)

    def digest(self) -> str:
        """Return the digest of the weights, as `WanVAE.digest`."""
        return weights_digest(self._model.state_dict()) if self._digest is None else self._digest()

    def encode(self, video: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> normalized latents (B, z, t, h, w), as `WanVAE.encode`.

        Args:
            video: The clip.
            latents_per_pass: Latents per pass, or at most, if there is a budget.
            memory: A budget for everything the call takes on this rank in addition to the loaded model and `video`,
                including the result and what is exchanged. It may differ between ranks; all follow the plan for the
                least of them (see `plan`).

        Raises:
            UserError: T, H or W does not fit, the picture is too small for so many ranks, or the budget is too small;
                the message, which all ranks give, says what would work.
        """
        return self._run(video, "encode", latents_per_pass, memory)

    def decode(self, latents: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None) -> Tensor:
        """Normalized latents (B, z, t, h, w) -> video (B, 3, T, H, W); arguments and errors as for `encode`."""
        return self._run(latents, "decode", latents_per_pass, memory)

    def encode_stream(
        self, chunks: Iterable[Tensor], *, latents_per_pass: int | None = None, memory: Budget | None = None
    ) -> Iterator[Tensor]:
        """Encode a clip that arrives in chunks of (B, 3, n, H, W), the same on every rank, as `WanVAE.encode_stream`.

        Raises:
            UserError: While iterating: the ranks are given different chunks, or one of them stopped before the others;
                otherwise as `encode`.
        """
        return self._stream(chunks, "encode", latents_per_pass, memory)

    def decode_stream(
        self, chunks: Iterable[Tensor], *, latents_per_pass: int | None = None, memory: Budget | None = None
    ) -> Iterator[Tensor]:
        """Decode normalized latents that arrive in chunks of (B, z, n, h, w); otherwise as `encode_stream`."""
        return self._stream(chunks, "decode", latents_per_pass, memory)

    def plan(
        self,
        direction: Direction,
        *,
        frames: int,
        height: int,
        width: int,
        memory: Budget,
        batch: int = 1,
        latents_per_pass: int | None = None,
        streaming: bool = False,
    ) -> Plan:
        """Return how a call would keep to a budget, as `WanVAE.plan`; all ranks must call it, and raise alike.

        The plan is that of a part that takes most: `overhead` and `peak` are that part's, `budget` is the least of all
        ranks'.
        """
        size = {"batch": batch, "frames": frames, "height": height, "width": width}
        with self._group.telling_errors():
            x = dummy_input(self._model, direction, **size, streaming=streaming)
        self._group.check_alike(f"a plan for {tuple(x.shape)}")
        with torch.no_grad():
            return self._plan(x, direction, latents_per_pass, memory, streaming=streaming)

    def share(self, height: int, width: int) -> Share:
        """Return this rank's part of a picture of height x width latents.

        Raises:
            UserError: The picture is too small for so many ranks.
        """
        height, width = check_count("height", height), check_count("width", width)
        if self._shape is None:
            return Share(best_grid(self._group.world_size, height, width), self._group)
        return Share(even_grid(*self._shape, height, width), self._group)

    def _share_of(self, x: Tensor, direction: Direction) -> Share:
        scale, _ = self._scales(direction)
        return self.share(x.shape[3] // scale, x.shape[4] // scale)

    def _scales(self, direction: Direction) -> tuple[int, int]:
        """Return the pixels of a latent's side in a call's input and in its result."""
        side = self.config.spatial_compression
        return (side, 1) if direction == "encode" else (1, side * self.config.output_upscale)

    def _joined(self, share: Share, part: Tensor, direction: Direction) -> Tensor:
        return share.gather(part, self._scales(direction)[1]) if self._gather else part

    def _run(self, x: Tensor, direction: Direction, latents_per_pass: int | None, memory: Budget | None) -> Tensor:
        with self._group.telling_errors():
            self._check(x, direction, whole=True)
            check_latents_per_pass(latents_per_pass)
            if records_gradients(self._model, x):
                raise UserError(
                    "Clips in shards pass without gradients; call it inside torch.no_grad(), or turn off requires_grad."
                )
        settings = self._settings(latents_per_pass, memory)
        self._group.check_alike(f"{direction} of {tuple(x.shape)} in {x.dtype} with {settings}")
        share, tiling, model = self._share_of(x, direction), None, self._model
        with torch.no_grad():
            if memory is not None:
                plan = self._plan(x, direction, latents_per_pass, memory, streaming=False)
                latents_per_pass, tiling = plan.latents_per_pass, plan.tiling
            part = share.cut(x, self._scales(direction)[0])
            if direction == "decode":
                part = decode_video(model, part, latents_per_pass, tiling, share.neighbors)
            else:
                moments = encode_moments(model, part, latents_per_pass, tiling, share.neighbors)
                mean, _ = moments.chunk(2, dim=1)
                part = LatentStatistics.of(model.config, mean.dtype, mean.device).normalized(mean)
            return self._joined(share, part, direction)

    def _check(self, x: Tensor, direction: Direction, *, whole: bool) -> None:
        check = check_video if direction == "encode" else check_latents
        check(x, self.config, whole=whole)
        check_device(x, self.device)

    def _stream(
        self, chunks: Iterable[Tensor], direction: Direction, latents_per_pass: int | None, memory: Budget | None
    ) -> Iterator[Tensor]:
        with self._group.telling_errors():
            check_type("chunks", chunks, Iterable, "an iterable of tensors, such as [video]")
            check_latents_per_pass(latents_per_pass)
        stream: ClipStream | None = None
        share, iterator = cast(Share, None), iter(chunks)
        settings = self._settings(latents_per_pass, memory)
        while (chunk := self._next_chunk(iterator, direction, settings)) is not None:
            if stream is None:
                share, tiling = self._share_of(chunk, direction), None
                if memory is not None:
                    with torch.no_grad():
                        plan = self._plan(chunk, direction, latents_per_pass, memory, streaming=True)
                    latents_per_pass, tiling = plan.latents_per_pass, plan.tiling
                kind = EncodeStream if direction == "encode" else DecodeStream
                stream = kind(self._model, latents_per_pass=latents_per_pass, neighbors=share.neighbors, tiling=tiling)
            result = stream.push(share.cut(chunk, self._scales(direction)[0]))
            if result is not None:
                result = self._joined(share, result, direction)
                try:
                    yield result
                except GeneratorExit:
                    # The other ranks get an error at their next chunk, instead of waiting for this one.
                    if dist.is_initialized():
                        self._group.all_gather_object(f"the end of a stream to {direction}, which was abandoned")
                    raise
                del result  # it belongs to the caller now
        if stream is None:
            raise UserError("The stream ended without a single frame; push at least one.")
        stream.flush()

    def _settings(self, latents_per_pass: int | None, memory: Budget | None) -> str:
        """Describe what all ranks must have alike besides the clip, or they would wait for each other."""
        passes = "any" if latents_per_pass is None else latents_per_pass
        budget = "no budget" if memory is None else "a budget"
        return f"{budget} of memory, {passes} latents_per_pass and gather={self._gather}"

    def _next_chunk(self, chunks: Iterator[Tensor], direction: Direction, settings: str) -> Tensor | None:
        """Return the next chunk, or None at the end, on all ranks alike."""
        with self._group.telling_errors():
            chunk = next(chunks, None)
            if chunk is not None:
                self._check(chunk, direction, whole=False)
        shape = "the end" if chunk is None else f"{tuple(chunk.shape)} in {chunk.dtype}"
        self._group.check_alike(f"{shape} of a stream to {direction} with {settings}")
        return chunk

    def _plan(
        self, x: Tensor, direction: Direction, latents_per_pass: int | None, memory: Budget, *, streaming: bool
    ) -> Plan:
        budget = min_budget(memory, self.device, self._group)
        plan: Plan | UserError | None = None
        # One rank decides: two might not find the same plan, because their processors may differ.
        if self._group.rank == 0:
            try:
                part = largest_part(self._share_of(x, direction).grid, *self._scales(direction), gather=self._gather)
                plan = make_plan(self._model, direction, x, latents_per_pass, budget, streaming=streaming, part=part)
            except UserError as error:
                plan = error  # of its own class: callers ask a BudgetError what would fit
        plan = self._group.all_gather_object(plan)[0]
        if isinstance(plan, UserError):
            raise plan
        assert plan is not None
        return plan


class DryTransport:
    """A transport for dry runs: carries nothing, and only holds what would be in flight."""

    def __init__(self, world_size: int, rank: int) -> None:
        self.world_size = world_size
        self.rank = rank

    def start(self, sent: Iterable[Message], filled: Iterable[Message]) -> Transfers:
        return Transfers([], [tensor for messages in (sent, filled) for _, tensor in messages])


def largest_part(
    grid: Grid,
    in_scale: int,
    out_scale: int,
    *,
    gather: bool,
    transport: Callable[[int, int], Transport] = DryTransport,
) -> Part:
    """Return a part that takes at least as much memory as any other: a largest one, with the most neighbors.

    Args:
        grid: How the picture is cut.
        in_scale: Pixels of a latent's side in the call's input.
        out_scale: Pixels of a latent's side in the call's result.
        gather: Whether every rank gets the whole result.
        transport: Builds the transport, given world size and rank.
    """
    # The same parts in another order, so that the largest has neighbors on both sides, if any has.
    inner = Grid(_largest_inside(grid.heights), _largest_inside(grid.widths))
    rank = inner.part_at(min(1, grid.rows - 1), min(1, grid.columns - 1))
    assert rank is not None
    share = Share(inner, transport(grid.rows * grid.columns, rank))
    return Part(
        share.neighbors,
        inner.beyond(rank),
        lambda whole: share.cut(whole, in_scale),
        lambda part: share.gather(part, out_scale) if gather else part,
        key=(inner, rank, gather),
    )


def _largest_inside(sizes: tuple[int, ...]) -> tuple[int, ...]:
    first, *others = sorted(sizes)
    return (first, *reversed(others))


def _members(mesh: "DeviceMesh | None") -> tuple[ProcessGroup, tuple[int, int] | None]:
    """Return the ranks of a mesh and, if it has rows and columns, how many of each."""
    if mesh is None:
        return ProcessGroup(range(dist.get_world_size())), None
    from torch.distributed.device_mesh import DeviceMesh

    check_type("mesh", mesh, DeviceMesh, "a DeviceMesh, or None for all processes")
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
