"""Text embeddings beside a cache: one file a clip, made by a text encoder elsewhere."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wan_vae.checkpoints.tensor_files import list_tensors
from wan_vae.errors import CheckpointError, UserError

_SUFFIXES = (".safetensors", ".npy")


def find_embedding(folder: Path, source: str) -> Path:
    """Return the file of a clip: sub/a.mp4.safetensors, sub/a.safetensors, or .npy in place of it.

    Raises:
        UserError: There is none.
    """
    place = folder / source
    names = [f"{name}{suffix}" for name in (place.name, place.stem) for suffix in _SUFFIXES]
    for name in names:
        if (path := place.with_name(name)).is_file():
            return path
    raise UserError(f"{folder} holds no text embedding of {source}: one of {', '.join(names)} in {place.parent}.")


def read_embedding(path: Path) -> Tensor:
    """Return the embedding that a file holds, (tokens, width) in float32; a batch of one is taken, too.

    Raises:
        UserError: The file cannot be read, or holds no such tensor, or several.
    """
    try:
        if path.suffix == ".npy":
            # Mapped, so that a header that claims more than there is costs nothing.
            found = [torch.from_numpy(np.array(np.load(path, mmap_mode="r", allow_pickle=False)))]
        else:
            listed = list_tensors(path)
            found = list(listed.read(listed.tensors).values())
    except (CheckpointError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a text embedding: {error}") from error
    able = [tensor[0] if tensor.ndim == 3 and tensor.shape[0] == 1 else tensor for tensor in found]
    able = [tensor for tensor in able if tensor.ndim == 2 and tensor.is_floating_point() and tensor.numel()]
    if len(able) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in found[:4]) or "nothing"
        raise UserError(f"{path} holds {shapes}; a text embedding is one tensor of floats (tokens, width).")
    if not torch.isfinite(able[0]).all():
        raise UserError(f"{path} holds NaN or infinite values; encode its caption again.")
    return able[0].float()
