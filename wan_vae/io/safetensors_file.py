"""Safetensors files, read with plain reads: a mapped file that another program cuts kills the process.

A file is the length of its header in 8 bytes, the header, a JSON object, and the tensors' bytes one after another.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

LARGEST_HEADER = 2**22
"""Bytes of a header: room for tens of thousands of tensors, while parsing takes a fraction of a second and 100 MB."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorInFile(NamedTuple):
    """Where a file keeps a tensor."""

    kind: str  # safetensors' name of the dtype; one that is not in `DTYPES` cannot be read
    shape: tuple[int, ...]
    start: int  # position of its first byte in the file


def read_header(file: BinaryIO) -> tuple[dict[str, TensorInFile], dict[str, str]]:
    """Return the tensors and the metadata that the header of an open file describes.

    Raises:
        ValueError: The header is damaged, larger than `LARGEST_HEADER`, or does not describe exactly the file's bytes.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError("it is cut short, or no safetensors file")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header of {length} bytes is larger than {LARGEST_HEADER}")
    try:
        header = json.loads(file.read(length))
    except RecursionError:
        raise ValueError("its header is no list of tensors") from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is no list of tensors")
    end = begin = 8 + length
    tensors = {}
    for name, (kind, shape, first, last) in sorted(
        ((name, _entry(name, entry)) for name, entry in header.items()), key=lambda item: item[1][2:]
    ):
        if begin + first != end:
            raise ValueError(f"the bytes of {name!r} do not follow those of the tensor before it")
        tensors[name] = TensorInFile(kind, shape, end)
        end = begin + last
    if end != size:
        raise ValueError(f"it has {size} bytes, and its header describes {end}")
    return tensors, metadata


def safetensors_header(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """Return what precedes the bytes of tensors, which follow in this order.

    Args:
        tensors: safetensors' name of the dtype, and the shape, by name.
        metadata: Texts by name.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (kind, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * DTYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = (*shape, first, last)
        whole = len(numbers) < 64 and all(type(number) is int and 0 <= number < 2**62 for number in numbers)
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole or not isinstance(kind, str):
        raise ValueError(f"its header does not describe {name!r}")
    if last < first or (kind in DTYPES and math.prod(shape) * DTYPES[kind].itemsize != last - first):
        raise ValueError(f"the bytes of {name!r} are not those of its shape {tuple(shape)}")
    return kind, tuple(shape), first, last


def read_exactly(file: BinaryIO, start: int, tensor: Tensor) -> None:
    """Fill a contiguous tensor on the CPU with bytes from a position in a file on.

    Raises:
        ValueError: The file ends before.
    """
    file.seek(start)
    buffer = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
    while buffer and (count := file.readinto(buffer)):  # type: ignore[attr-defined]  # of every binary file
        buffer = buffer[count:]
    if buffer:
        raise ValueError("it ends before its last tensor")


class Version(NamedTuple):
    """What changes when a file is replaced, cut or overwritten."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds


def version(file: BinaryIO) -> Version:
    """Return the version of an open file."""
    return _version(os.fstat(file.fileno()))


def version_at(path: Path) -> Version:
    """Return the version of the file that is at a path now."""
    return _version(path.stat())


def _version(status: os.stat_result) -> Version:
    return Version(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
