"""What a cache holds: a line of JSON for every output, and one for every clip that could not be cached.

Lines are appended when an output has its name, so a run that was killed leaves a manifest of whole outputs only.
Several processes write files of their own into one cache (`shard`), and read those of all.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wan_vae.errors import UserError

MANIFEST, FAILURES = "manifest", "failures"
_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Key:
    """What an output depends on; if any of it changes, the clip is done again."""

    bytes: int  # size of the source
    modified: int  # its time, in nanoseconds
    caption: str | None
    options: str  # digest of the options
    checkpoint: str  # digest of the weights


@dataclass(frozen=True)
class Record:
    """An output.

    Attributes:
        source: Name of the clip, as `Source.name`.
        output: The file, below the cache's folder.
        part, parts: Number of this part of the clip, from 0, and how many there are.
        start: First frame of the part.
        frames: Frames of the part, without padding.
        width, height, fps: Of the encoded frames.
        duration: Seconds of the part.
        shape: Of the latents, (1, z, t, h, w).
        mean, std: Of all normalized latents of the part.
        caption: Of the clip.
        seconds: Time that it took.
        bytes: Size of the output.
        extra: The list's other columns.
        key: What the output depends on.
    """

    source: str
    output: str
    part: int
    parts: int
    start: int
    frames: int
    width: int
    height: int
    fps: str
    duration: float
    shape: tuple[int, ...]
    mean: float
    std: float
    caption: str | None
    seconds: float
    bytes: int
    key: Key
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A clip that could not be cached, and why."""

    source: str
    error: str
    key: Key


class Manifest:
    """The manifest and the failures of a cache's folder.

    Attributes:
        records: The outputs by source and part, of all processes.
        failures: The failures by source, of all processes.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] = (0, 1)) -> None:
        """Read what is there; `shard` is the number of this process, from 0, and how many there are."""
        number, count = shard
        own = "" if count == 1 else f"-{number + 1:05d}-of-{count:05d}"
        self._own = {kind: folder / f"{kind}{own}{_SUFFIX}" for kind in (MANIFEST, FAILURES)}
        self.folder = folder
        self.records: dict[tuple[str, int], Record] = {}
        self.failures: dict[str, Failure] = {}
        for path in sorted(folder.glob(f"{MANIFEST}*{_SUFFIX}")):
            for values in _lines(path):
                record = Record(**{**values, "key": Key(**values["key"]), "shape": tuple(values["shape"])})
                self.records[record.source, record.part] = record
        for path in sorted(folder.glob(f"{FAILURES}*{_SUFFIX}")):
            for values in _lines(path):
                self.failures[values["source"]] = Failure(**{**values, "key": Key(**values["key"])})

    def holds(self, source: str, key: Key) -> bool:
        """Whether all parts of a clip are there, whole, and made of what it is now."""
        first = self.records.get((source, 0))
        return first is not None and all(
            (record := self.records.get((source, part))) is not None
            and record.key == key
            and record.parts == first.parts
            and _size(self.folder / record.output) == record.bytes
            for part in range(first.parts)
        )

    def failed(self, source: str, key: Key) -> bool:
        """Whether a clip failed as it is now."""
        failure = self.failures.get(source)
        return failure is not None and failure.key == key

    def add(self, item: Record | Failure) -> None:
        """Append a line, which is on the disk when this returns."""
        if isinstance(item, Record):
            self.records[item.source, item.part] = item
            self.failures.pop(item.source, None)
        else:
            self.failures[item.source] = item
        path = self._own[MANIFEST if isinstance(item, Record) else FAILURES]
        line = json.dumps(asdict(item), ensure_ascii=False)
        try:
            with path.open("a+b") as file:
                # A process that was killed may have left half a line.
                if file.tell() and not _ends_line(file):
                    file.write(b"\n")
                file.write(line.encode("utf-8", "surrogatepass") + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}).") from error

    def settle(self) -> None:
        """Rewrite this process's failures without those of clips that are cached by now."""
        path = self._own[FAILURES]
        if not path.exists():
            return
        left = [failure for values in _lines(path) if (failure := self.failures.get(values["source"])) is not None]
        unique = {failure.source: failure for failure in left}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(
            "".join(json.dumps(asdict(failure), ensure_ascii=False) + "\n" for failure in unique.values())
        )
        temporary.replace(path)


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of lines; half a line, which a killed process left, is passed over."""
    with path.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line)
                if not isinstance(values, dict) or not {"source", "key"} <= values.keys():
                    raise ValueError
            except (ValueError, RecursionError):
                continue
            yield values


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
