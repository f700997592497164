"""The VAE over several devices."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.shards.grid import arranged, evenly
from wan_vae.shards.peers import Peers
from wan_vae.shards.share import Share
from wan_vae.shards.way import Way, decoding, encoding

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from wan_vae.vae import WanVAE


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
        self._gather = gather
        self._peers, self._shape = _members(mesh)

    @property
    def config(self) -> VAEConfig:
        """The architecture."""
        return self._vae.config

    def encode(self, video: Tensor, *, latents_per_pass: int | None = None) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> final latents (B, z, t, h, w), as `WanVAE.encode`.

        Raises:
            UserError: T, H or W does not fit, or the picture is too small for so many processes.
        """
        self._vae._check_video(video, whole=True)
        self._check_gradients(video)
        (latents,) = self.encode_stream([video], latents_per_pass=latents_per_pass)
        return latents

    def decode(self, latents: Tensor, *, latents_per_pass: int | None = None) -> Tensor:
        """Final latents (B, z, t, h, w) -> video (B, 3, T, H, W), as `WanVAE.decode`.

        Raises:
            UserError: The latents are not this model's, or the picture is too small for so many processes.
        """
        self._vae._check_latents(latents, whole=True)
        self._check_gradients(latents)
        (video,) = self.decode_stream([latents], latents_per_pass=latents_per_pass)
        return video

    def encode_stream(self, chunks: Iterable[Tensor], *, latents_per_pass: int | None = None) -> Iterator[Tensor]:
        """Encode a clip that arrives in chunks of (B, 3, n, H, W), as `WanVAE.encode_stream`."""
        return self._stream(chunks, encoding(self._vae), latents_per_pass)

    def decode_stream(self, chunks: Iterable[Tensor], *, latents_per_pass: int | None = None) -> Iterator[Tensor]:
        """Decode final latents that arrive in chunks of (B, z, n, h, w), as `WanVAE.decode_stream`."""
        return self._stream(chunks, decoding(self._vae), latents_per_pass)

    def share(self, height: int, width: int) -> Share:
        """Return which part this process has of a picture of height x width latents.

        Raises:
            UserError: The picture is too small for so many processes.
        """
        if self._shape is None:
            return Share(arranged(len(self._peers), height, width), self._peers)
        return Share(evenly(*self._shape, height, width), self._peers)

    def _stream(self, chunks: Iterable[Tensor], way: Way, latents_per_pass: int | None) -> Iterator[Tensor]:
        stream, share = way.stream(latents_per_pass=latents_per_pass), None
        for chunk in chunks:
            way.check(chunk)
            if share is None:
                self._peers.check_alike(f"a chunk of {tuple(chunk.shape)} in {chunk.dtype}")
                share = self.share(*way.latents(chunk.shape))
                stream = way.stream(latents_per_pass=latents_per_pass, neighbors=share.neighbors)
            part = stream.push(share.cut(chunk, way.scale))
            if part is not None:
                yield share.gather(part, way.becomes) if self._gather else part
        stream.flush()

    def _check_gradients(self, x: Tensor) -> None:
        if self._vae._records(x):
            raise UserError(
                "Clips in shards pass without gradients; call it inside torch.no_grad(), or turn off requires_grad."
            )


def _members(mesh: "DeviceMesh | None") -> tuple[Peers, tuple[int, int] | None]:
    """Return the processes of a mesh and, if they are in rows and columns, how many of these there are."""
    if mesh is None:
        return Peers(range(dist.get_world_size())), None
    if mesh.ndim > 2:
        raise UserError(f"The mesh has {mesh.ndim} dimensions; a picture is cut in rows and columns, so 1 or 2 fit.")
    ranks = mesh.mesh.flatten().tolist()
    if dist.get_rank() not in ranks:
        raise UserError(f"Process {dist.get_rank()} is not in the mesh, which holds {ranks}; call shard in those only.")
    if mesh.ndim == 1:
        return Peers(ranks, mesh.get_group()), None
    if len(ranks) != dist.get_world_size():
        raise UserError(
            f"A mesh of rows and columns must hold all {dist.get_world_size()} processes, but this one holds"
            f" {len(ranks)}; take one of a single dimension, which is arranged by itself."
        )
    rows, columns = mesh.mesh.shape
    return Peers(ranks), (rows, columns)
