"""Caches read back for training."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from wan_vae.arguments import check_path
from wan_vae.dataset.manifest import Manifest, Record
from wan_vae.dataset.storage import Outputs
from wan_vae.errors import LatentsError
from wan_vae.interchange.reader import open_latents


class LatentDataset(Dataset[dict[str, Any]]):
    """The outputs of a cache, in the order of their names, for a DataLoader with any number of workers.

    An item is a dictionary: `latents` (z, t, h, w) as the file holds them, which is normalized except for raw "tensor"
    files, in their dtype; `caption`, the text or ""; `source`, the clip's name; `start`, its first frame.

    Attributes:
        records: What the manifest says of each item. Latents of different `shape` do not fit in one batch.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the manifest of a cache.

        Raises:
            UserError: There is none, or it holds no output.
        """
        place = check_path("folder", folder)
        self._outputs = Outputs(place)
        self.records: list[Record] = Manifest.of_cache(place).records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        latents = stored_latents(self._outputs, record)[0]
        return {"latents": latents, "caption": record.caption or "", "source": record.source, "start": record.start}


def stored_latents(outputs: Outputs, record: Record) -> Tensor:
    """Return the latents of an output (1, z, t, h, w), as its file holds them.

    Raises:
        UserError: The file is missing or damaged, or holds others.
    """
    path = outputs.path(record.output)
    try:
        source = open_latents(path)
        found, latents = tuple(source.shape), next(source.chunks(record.shape[2]))
    except (LatentsError, OSError) as error:
        raise LatentsError(
            f"{outputs.shown(record.output)} cannot be read ({error}); run `wan-vae cache` again to replace it."
        ) from error
    if found != record.shape:
        raise LatentsError(
            f"{outputs.shown(record.output)} holds latents of {found}, and manifest.jsonl says"
            f" {record.shape}; run `wan-vae cache` again to replace it."
        )
    return latents
