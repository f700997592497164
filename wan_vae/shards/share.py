"""One process's part of a picture, and how the parts become a picture again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.ops.workspace import Workspace
from wan_vae.shards.grid import Grid
from wan_vae.shards.neighbors import ShardNeighbors
from wan_vae.shards.peers import Links, Message, channels_last


@dataclass(frozen=True)
class Share:
    """The part that this process has of a picture.

    Tensors are (B, C, T, H, W); in the whole picture's, a latent is `scale` x `scale` pixels.

    Attributes:
        grid: How the picture is cut.
        peers: Who has the parts, in their order.
    """

    grid: Grid
    peers: Links

    @property
    def neighbors(self) -> ShardNeighbors:
        """What lies around this part."""
        return ShardNeighbors(self.grid, self.peers)

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

    def scatter(self, whole: Tensor, scale: int) -> Tensor:
        """Send the others their parts of the picture, which this process alone has, and return its own."""
        own = self.cut(whole, scale)
        parts = [(peer, self.grid.cut(whole, peer, scale).contiguous()) for peer in self._others()]
        self.peers.start(parts, []).wait()
        return own

    def receive(self, shape: torch.Size, like: Tensor, scale: int, *, sender: int) -> Tensor:
        """Return this part of the picture of this shape that `sender` scatters, of the dtype and device of `like`."""
        part = like.new_empty((*shape[:3], *self._size(self.peers.index, scale)))
        self.peers.start([], [(sender, part)]).wait()
        return part

    def gather(self, part: Tensor, scale: int) -> Tensor:
        """Take each process's part of the picture and return the whole to all of them."""
        leaving, arriving = channels_last(part), self._arriving(part, scale)
        filled = [(peer, channels_last(other)) for peer, other in arriving]
        self.peers.start([(peer, leaving) for peer in self._others()], filled).wait()
        return self._joined(part, arriving, scale)

    def collect(self, part: Tensor, scale: int) -> Tensor:
        """Take the others' parts of the picture, which they `hand_in`, and this process's own, and return the whole."""
        arriving = self._arriving(part, scale)
        self.peers.start([], [(peer, channels_last(other)) for peer, other in arriving]).wait()
        return self._joined(part, arriving, scale)

    def hand_in(self, part: Tensor, *, receiver: int) -> None:
        """Send this part of the picture to `receiver`, who collects them."""
        self.peers.start([(receiver, channels_last(part))], []).wait()

    def _others(self) -> list[int]:
        return [peer for peer in range(len(self.peers)) if peer != self.peers.index]

    def _size(self, part: int, scale: int) -> tuple[int, int]:
        row, column = self.grid.place(part)
        return self.grid.heights[row] * scale, self.grid.widths[column] * scale

    def _arriving(self, like: Tensor, scale: int) -> list[Message]:
        # In memory of their own, which goes straight back.
        shapes = [(peer, (*like.shape[:3], *self._size(peer, scale))) for peer in self._others()]
        return [(peer, Workspace.lasting(shape, like=like)) for peer, shape in shapes]

    def _joined(self, own: Tensor, others: list[Message], scale: int) -> Tensor:
        size = (sum(self.grid.heights) * scale, sum(self.grid.widths) * scale)
        whole = own.new_empty((*own.shape[:3], *size))
        for peer, part in ((self.peers.index, own), *others):
            self.grid.cut(whole, peer, scale).copy_(part)
        return whole
