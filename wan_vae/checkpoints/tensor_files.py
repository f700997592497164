"""The tensors in checkpoint files of every format: listed first, and read only where they are wanted.

Formats are told apart by their content, never by the file's name. Listing takes time and memory in proportion to an
index of at most 4 MiB, whatever the size of the file. Nothing is mapped: a mapped file that is cut kills the process.
"""

import io
import json
import os
import pickle
import pickletools
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from wan_vae.errors import CheckpointError
from wan_vae.io.safetensors_file import DTYPES, LARGEST_HEADER, Version, read_exactly, read_header, version

WRAPPERS = ("model_state", "model", "state_dict")
"""Keys under which training checkpoints keep the model's weights; the first are preferred."""

_LARGEST_PICKLE = 2**20  # bytes of what lists the tensors: thousands of them, and unpickled in seconds at worst
_MOST_CONTAINERS = 2**15  # dictionaries and lists that are searched
_DEPTH = 4  # containers around a tensor: three, and the one with its name
_MOST_TENSORS = 2**14  # in one file; building a network of as many takes a second
_MOST_SHARDS = 1000
_SPARE = 2**26  # bytes that weights may take in addition to the size of their files: some share their storage


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is listed, but not read."""

    like: Tensor  # on the meta device, with its dtype, shape and strides; without a `place`, the tensor itself
    place: tuple[Path, int] | None = None  # file, and position of its first byte

    def has_values(self) -> bool:
        """Whether there are values, one after another: not in sparse, quantized and meta tensors."""
        like = self.like
        return like.layout == torch.strided and not like.is_quantized and (self.place is not None or not like.is_meta)

    def byte_count(self) -> int:
        """Return the bytes to read and to hold, whichever are more."""
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.like.shape, self.like.stride(), strict=True))
        return max(span, self.like.numel()) * self.like.itemsize


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a checkpoint, by name; those in nested dictionaries have dotted names."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str] = field(default_factory=dict)
    versions: dict[Path, Version] = field(default_factory=dict)  # of the files when they were listed

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor."""
        return {name: tuple(stored.like.shape) for name, stored in self.tensors.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors to the CPU, contiguous.

        Raises:
            CheckpointError: A file has changed since it was listed, or tensors claim more bytes than the files have.
        """
        wanted = {name: self.tensors[name] for name in names}
        claimed = sum(stored.byte_count() for stored in wanted.values())
        there = sum(size for _, _, size, _ in self.versions.values())
        if claimed > there + _SPARE:
            raise CheckpointError(f"its tensors claim {claimed} bytes, and it has {there}.")
        with ExitStack() as stack:
            files = {path: stack.enter_context(_open(path)) for path in self.versions}
            try:
                read, fault = {name: _read(stored, files) for name, stored in wanted.items()}, None
            except (OSError, ValueError) as error:
                read, fault = {}, f"it is damaged: {error}."
            if any(version(files[path]) != before for path, before in self.versions.items()):
                fault = "it was changed while it was read; start again."
        if fault is not None:
            raise CheckpointError(fault)
        return read


def _read(stored: StoredTensor, files: Mapping[Path, BinaryIO]) -> Tensor:
    tensor = stored.like.detach()
    if stored.place is not None:
        path, start = stored.place
        span = stored.byte_count() // tensor.itemsize if tensor.numel() else 0
        values = torch.empty(span, dtype=tensor.dtype, device="cpu")
        read_exactly(files[path], start, values)
        values = values.as_strided(tensor.shape, tensor.stride())
        tensor = -values if tensor.is_neg() else values
    return tensor.resolve_neg().contiguous()


def tensor_format(path: Path) -> Literal["archive", "pickle", "safetensors", "index"] | None:
    """Return the format of a file that starts like torch's (archives or, before 1.6, pickles), safetensors or JSON."""
    with _open(path) as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        return "archive"
    # Eight bytes of header length, of which the first may be a pickle's, and the header's brace.
    if start.endswith(b"{") and len(start) == 9:
        return "safetensors"
    if start.startswith(b"{"):
        return "index"
    return "pickle" if start.startswith(b"\x80") else None


def list_tensors(path: Path) -> TensorFile:
    """List the tensors of a file: safetensors, torch's, or the index of a checkpoint in several files.

    Raises:
        CheckpointError: The file is damaged, holds no named tensors, or cannot be loaded without running code.
    """
    kind = tensor_format(path)
    with _open(path) as file:
        seen = version(file)
        if kind == "index":
            return _list_shards(path, file)
        metadata: dict[str, str] = {}
        if kind in ("archive", "pickle"):
            tensors = _list_torch(path, file, zipped=kind == "archive")
        else:
            tensors, metadata = _list_safetensors(path, file)
    if len(tensors) > _MOST_TENSORS:
        raise CheckpointError(f"{path} holds {len(tensors)} tensors, more than {_MOST_TENSORS}; save the VAE alone.")
    return TensorFile(tensors, metadata, {path: seen})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors by name, and its metadata; names under one of `WRAPPERS` lose it.

    Raises:
        CheckpointError: As in `list_tensors`, or the file changes while it is read.
    """
    listed = list_tensors(path)
    try:
        tensors = listed.read(listed.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    for wrapper in WRAPPERS:
        tensors |= {name.removeprefix(f"{wrapper}."): tensor for name, tensor in tensors.items()}
    return tensors, listed.metadata


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        CheckpointError: It cannot be read, is larger than an index, or is not JSON.
    """
    with _open(path) as file:
        text = file.read(LARGEST_HEADER + 1)
    if len(text) > LARGEST_HEADER:
        raise CheckpointError(f"{path} is not JSON of at most {LARGEST_HEADER} bytes.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error


def _open(path: Path) -> BinaryIO:
    try:
        if not path.is_file():  # opening a pipe waits for a writer
            raise CheckpointError(f"{path} is not a file.")
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _list_safetensors(path: Path, file: BinaryIO) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    try:
        entries, metadata = read_header(file)
        # A kind that torch lacks is listed by its bytes: it is no weight, and may lie beside weights.
        return {
            name: StoredTensor(torch.empty(shape, dtype=DTYPES.get(kind, torch.uint8), device="meta"), (path, start))
            for name, (kind, shape, start) in entries.items()
        }, metadata
    except (RuntimeError, ValueError) as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is not a readable checkpoint ({size} bytes): {error}.") from error


def _list_shards(path: Path, file: BinaryIO) -> TensorFile:
    content = read_json(path)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in names.values()
    ):
        raise CheckpointError(f"{path} is not a readable checkpoint: it is JSON, but no index of files beside it.")
    shards = sorted(set(names.values()))
    if len(shards) > _MOST_SHARDS:
        raise CheckpointError(f"{path} names {len(shards)} files, more than {_MOST_SHARDS}.")
    whole = TensorFile({}, {}, {path: version(file)})
    for shard in shards:
        if tensor_format(path.parent / shard) == "index":
            raise CheckpointError(f"{path} names {shard!r}, which is an index itself.")
        part = list_tensors(path.parent / shard)
        whole.tensors.update(part.tensors)
        whole.metadata.update(part.metadata)
        whole.versions.update(part.versions)
        if len(whole.tensors) > _MOST_TENSORS:
            raise CheckpointError(f"{path} holds more than {_MOST_TENSORS} tensors; save the VAE alone.")
    return whole


def _list_torch(path: Path, file: BinaryIO, *, zipped: bool) -> dict[str, StoredTensor]:
    try:
        (_check_archive if zipped else _check_pickles)(file)
        file.seek(0)
        # Torch leaves the values of archives in the file if they are to go to the meta device, but old versions
        # read them first, as all versions do for pickles.
        lazy = zipped and hasattr(torch.serialization, "_is_meta_location")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="meta" if lazy else "cpu", weights_only=True)
        tensors: dict[str, Tensor] = {}
        for name, tensor in _named_tensors(content):
            tensors.setdefault(name, tensor)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}.") from error
    except Exception as error:
        # A damaged file can make the unpickler raise anything.
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise CheckpointError(f"{path} holds more than weights and is not loaded: it could run code.") from error
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        if isinstance(error, NotImplementedError) or "sparse" in reason:
            reason = f"it holds sparse, nested or quantized tensors; save the weights alone ({reason})"
        raise CheckpointError(f"{path} is damaged: {reason}.") from error
    if not tensors and not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors.")
    return {name: _stored(path, tensor) for name, tensor in tensors.items()}


def _stored(path: Path, tensor: Tensor) -> StoredTensor:
    tensor = tensor.detach()
    strided = tensor.layout == torch.strided and not tensor.is_quantized
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None) if strided else None
    if start is None:
        return StoredTensor(tensor)
    return StoredTensor(tensor, (path, start + tensor.storage_offset() * tensor.itemsize))


def _named_tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors under names in nested dictionaries and lists, the outermost first, with dotted names."""
    level, seen = [("", content)] if isinstance(content, dict | list | tuple) else [], {id(content)}
    for _ in range(_DEPTH):
        below = []
        for prefix, container in level:
            items = container.items() if isinstance(container, dict) else enumerate(container)
            for position, (key, value) in enumerate(items):
                if isinstance(value, Tensor):
                    if isinstance(key, str) and not value.is_nested:
                        yield prefix + key, value
                elif isinstance(value, dict | list | tuple) and id(value) not in seen and len(seen) < _MOST_CONTAINERS:
                    seen.add(id(value))
                    below.append((f"{prefix}{key[:100] if isinstance(key, str) else position}.", value))
        level = below


class _BoundedReads(io.BufferedReader):
    """A file that refuses large reads: `zipfile` reads the whole directory of an archive at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        rest = os.fstat(self.fileno()).st_size - self.tell()
        if (rest if size is None or size < 0 else min(size, rest)) > _LARGEST_PICKLE:
            raise ValueError(f"its directory is larger than {_LARGEST_PICKLE} bytes")
        return super().read(size)


def _check_archive(file: BinaryIO) -> None:
    """Raise a CheckpointError for an archive that torch did not write, or that takes more memory than its size says."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(_BoundedReads(io.FileIO(file.fileno(), closefd=False))) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise CheckpointError("it holds a program, TorchScript; save its state_dict()")
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries
        ):
            raise CheckpointError("it is compressed, which torch's archives are not")
        if sum(entry.file_size for entry in entries) > size:
            raise CheckpointError(f"its entries claim more than its {size} bytes")
        for entry in entries:
            if "/data/" not in entry.filename and entry.file_size > _LARGEST_PICKLE:
                raise CheckpointError(
                    f"{entry.filename!r} in it has {entry.file_size} bytes, more than {_LARGEST_PICKLE}; save the VAE"
                    " alone"
                )
            if entry.filename.lower().endswith("byteorder"):
                entry.CRC = None  # type: ignore[assignment]  # torch can write archives without checksums
                order = archive.read(entry).decode()
                if order != sys.byteorder:  # torch would swap bytes that are not in memory
                    raise CheckpointError(
                        f"its numbers are {order!r}-endian; save it again on a computer like this one"
                    )


def _check_pickles(file: BinaryIO) -> None:
    """Raise a CheckpointError unless a file begins with the five pickles that precede the values in torch's format."""
    stream = io.BytesIO(file.read(_LARGEST_PICKLE))
    try:
        for _ in range(5):
            for operation, argument, _ in pickletools.genops(stream):
                # Torch would build them from memory that it fills later.
                if operation.name == "GLOBAL" and "nested" in str(argument):
                    raise CheckpointError("it holds nested tensors; save the weights alone")
    except CheckpointError:
        raise
    except Exception as error:  # pickletools raises almost anything for a damaged file
        raise CheckpointError(
            f"its pickles are damaged, not torch's, or larger than {_LARGEST_PICKLE} bytes"
        ) from error
