"""The tensors in a file, whichever of the formats it is in; told from its content, never from its name."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wan_vae.errors import CheckpointError

WRAPPERS = ("model_state", "state_dict")
"""Keys under which training checkpoints keep the model's weights."""


def holds_tensors(path: Path) -> bool:
    """Whether a file starts like one of torch or of safetensors."""
    return _is_torch(path) or _start(path).endswith(b"{")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors by name, mapped rather than read unless it is one of torch's old ones, and its metadata.

    Raises:
        CheckpointError: It is damaged, holds no named tensors, or more than can be loaded without running code.
    """
    if _is_torch(path):
        return _named_tensors(_load_torch(path), path), {}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is not a readable checkpoint ({size} bytes): {error}.") from error


def _is_torch(path: Path) -> bool:
    # torch's files are zip archives or, if old, pickles. A safetensors file starts with eight bytes of header length,
    # of which any may be the first, and the header's brace.
    start = _start(path)
    return _is_archive(path) or (start.startswith(b"\x80") and not start.endswith(b"{"))


def _is_archive(path: Path) -> bool:
    return _start(path).startswith(b"PK\x03\x04")


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Only archives can be mapped, and only by their name, which torch believes rather than the content.
            if _is_archive(path) and not path.name.endswith(".safetensors"):
                return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # What a damaged file makes the unpickler do is anybody's guess.
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise CheckpointError(f"{path} holds more than weights and is not loaded: it could run code.") from error
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise CheckpointError(f"{path} is damaged: {reason}.") from error


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors.")
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
