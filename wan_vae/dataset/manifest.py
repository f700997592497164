"""What a cache holds: a line of JSON for every output, and one for every clip that could not be cached.

Lines are appended when an output has its name, so a run that was killed leaves a manifest of whole outputs only; lines
of another kind say that outputs are no longer of the cache. Several processes write files of their own into one cache
(`shard`), and read those of all, in the order in which the lines were written.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from wan_vae.arguments import shown
from wan_vae.dataset.storage import Store, is_below, is_url
from wan_vae.errors import UserError

Item = TypeVar("Item")

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
        source: The clip, as `Source.label`.
        output: The file, below the cache's folder, or its URL.
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


@dataclass(frozen=True)
class Removal:
    """Outputs that are no longer of the cache: their clip is another by now and failed, or is gone and was pruned.

    Attributes:
        removed: The clip, as `Source.label`.
        key: Of its outputs.
    """

    removed: str
    key: Key


class Manifest:
    """The manifest and the failures of a cache's folder.

    Attributes:
        folder: The cache.
        failures: The failures by source, of all processes.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] = (0, 1), store: Store | None = None) -> None:
        """Read what is there; `shard` is the number of this process, from 0, and how many there are.

        A UserError if `store` cannot be reached.
        """
        number, count = shard
        own = "" if count == 1 else f"-{number + 1:05d}-of-{count:05d}"
        self._own = {kind: folder / f"{kind}{own}{_SUFFIX}" for kind in (MANIFEST, FAILURES)}
        self.folder = folder
        self._parts: dict[str, dict[int, Record]] = {}
        self._owners: dict[str, tuple[str, int]] = {}  # clips and parts by all outputs that there ever were
        self.failures: dict[str, Failure] = {}
        self._latest = 0  # nanoseconds, of the last line of any process
        for item in self._read(MANIFEST, _entry):
            self._take(item)
        for failure in self._read(FAILURES, _failure):
            self.failures[failure.source] = failure
        self._stored = {} if store is None else store.sizes()

    def _read(self, kind: str, parse: Callable[[dict[str, Any]], Item]) -> list[Item]:
        """Return what all processes wrote, in the order of time; lines without a time are those of earlier versions."""
        lines = [line for path in sorted(self.folder.glob(f"{kind}*{_SUFFIX}")) for line in _lines(path, parse)]
        lines.sort(key=lambda line: line.written)
        if lines:
            self._latest = max(self._latest, lines[-1].written)
        return [line.item for line in lines]

    @classmethod
    def of_cache(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder that must be a cache; a UserError if it holds no output."""
        manifest = cls(folder)
        if not manifest.records:
            raise UserError(f"{folder} is no cache: it has no manifest.jsonl with outputs.")
        return manifest

    def holds(self, source: str, key: Key) -> bool:
        """Whether all parts of a clip are there, whole, and made of what it is now."""
        parts = self._parts.get(source, {})
        return bool(parts) and all(
            record.key == key and record.parts == len(parts) and self._size(record.output) == record.bytes
            for record in parts.values()
        )

    def _size(self, output: str) -> int | None:
        if is_url(output):
            return self._stored.get(output)
        try:
            return (self.folder / output).stat().st_size
        except OSError:
            return None

    @property
    def records(self) -> list[Record]:
        """The outputs of all processes, by the names of the clips, then by part."""
        return [self._parts[source][part] for source in sorted(self._parts) for part in sorted(self._parts[source])]

    @property
    def sources(self) -> set[str]:
        """The clips that have outputs."""
        return {source for source, parts in self._parts.items() if parts}

    def outputs_of(self, source: str) -> list[str]:
        """Return the outputs of a clip."""
        return [record.output for record in self._parts.get(source, {}).values()]

    def former(self) -> list[str]:
        """Return outputs that are still there, but of no clip as it is now: made of another file, or otherwise."""
        return sorted(output for output in self._owners if not self._owns(output) and self._size(output) is not None)

    def lists(self, output: str) -> bool:
        """Whether an output is of this cache, or was."""
        return output in self._owners

    def owner_of(self, output: str) -> str | None:
        """Return the clip that an output is of, None for one that is of none as it is now."""
        return self._owners[output][0] if output in self._owners and self._owns(output) else None

    def _owns(self, output: str) -> bool:
        source, part = self._owners[output]
        record = self._parts.get(source, {}).get(part)
        return record is not None and record.output == output

    def _take(self, record: Record | Removal) -> None:
        if isinstance(record, Removal):
            parts = self._parts.get(record.removed, {})
            for number in [number for number, other in parts.items() if other.key == record.key]:
                del parts[number]
            return
        parts = self._parts.setdefault(record.source, {})
        # Parts that were made of another file, or with other options, are not of this clip any more.
        for number in [
            number for number, other in parts.items() if (other.key, other.parts) != (record.key, record.parts)
        ]:
            del parts[number]
        parts[record.part] = record
        # A clip that was renamed to another extension may have the same output; the file is of one of them.
        owner, part = self._owners.get(record.output, (record.source, record.part))
        if owner != record.source:
            self._parts.get(owner, {}).pop(part, None)
        self._owners[record.output] = record.source, record.part

    def failed(self, source: str, key: Key) -> bool:
        """Whether a clip failed as it is now."""
        failure = self.failures.get(source)
        return failure is not None and failure.key == key

    def remove(self, source: str) -> None:
        """Take a clip's outputs out of the manifest; the files stay."""
        for key in {record.key for record in self._parts.get(source, {}).values()}:
            self._append(Removal(source, key))
        self._parts.pop(source, None)

    def add(self, item: Record | Failure, *, keep: bool = False) -> None:
        """Append a line, which is on the disk when this returns.

        Earlier outputs of a clip that failed are taken out, unless `keep`: a clip that is missing may come back.
        """
        if isinstance(item, Record):
            self._take(item)
            self.failures.pop(item.source, None)
        else:
            if not keep:
                self.remove(item.source)
            self.failures[item.source] = item
        self._append(item)

    def _append(self, item: Record | Removal | Failure) -> None:
        path = self._own[FAILURES if isinstance(item, Failure) else MANIFEST]
        # Later than every line that it may change, also where the clocks of machines differ.
        self._latest = max(self._latest + 1, time.time_ns())
        try:
            with path.open("a+b") as file:
                # A process that was killed may have left half a line.
                if file.tell() and not _ends_line(file):
                    file.write(b"\n")
                file.write(_Line(self._latest, item).to_bytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}).") from error

    def settle(self) -> None:
        """Rewrite this process's failures without those of clips that are cached by now."""
        path = self._own[FAILURES]
        if not path.exists():
            return
        lines = list(_lines(path, _failure))
        left = {line.item.source: line for line in lines if line.item.source in self.failures}
        if len(left) == len(lines):
            return
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(b"".join(line.to_bytes() for line in left.values()))
        temporary.replace(path)


def output_of(cache: Path, index: int) -> str:
    """Return the output of the record of this number in a cache, in the order of `Manifest.records`.

    Raises:
        UserError: There is no cache, or no such record.
    """
    records = Manifest.of_cache(cache).records
    if index >= len(records):
        raise UserError(
            f"--index is {index}, but {cache} has {len(records)} outputs; it is from 0 to {len(records) - 1}."
        )
    return records[index].output


@dataclass(frozen=True)
class _Line(Generic[Item]):
    """A line of a file, and the time in nanoseconds when it was written, 0 where it does not tell."""

    written: int
    item: Item

    def to_bytes(self) -> bytes:
        values = {**asdict(self.item), "written": self.written}  # type: ignore[call-overload]
        try:
            return json.dumps(values, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # a name of bytes that are no UTF-8
            return json.dumps(values).encode() + b"\n"


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _lines(path: Path, parse: Callable[[dict[str, Any]], Item]) -> Iterator[_Line[Item]]:
    """Yield what a file of lines holds; half a line of a killed process is passed over, so that its clip is done again.

    Raises:
        UserError: The file is another program's, which must not be written to.
    """
    ours = False
    with path.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line)
                written = int(values.pop("written", 0))
                item = parse(values)
            except UserError as error:
                raise UserError(f"{path} cannot be used: {error}") from error
            except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
                if not ours and line.startswith(b"{") and b'"key"' not in line and line.rstrip().endswith(b"}"):
                    raise UserError(
                        f"{path} is not of a cache, whose lists of outputs and failures have this name; rename it, or"
                        " name another folder for the outputs."
                    ) from None
                continue
            ours = True
            yield _Line(written, item)


def _entry(values: dict[str, Any]) -> Record | Removal:
    key = Key(**values["key"])
    if "removed" in values:
        return Removal(values["removed"], key)
    if not is_url(values["output"]) and not is_below(values["output"]):
        raise UserError(f"an output is {shown(values['output'])}, outside of the cache; take that line out.")
    return Record(**{**values, "key": key, "shape": tuple(values["shape"])})


def _failure(values: dict[str, Any]) -> Failure:
    return Failure(**{**values, "key": Key(**values["key"])})
