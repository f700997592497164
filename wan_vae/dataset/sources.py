"""What is to be cached: a folder, or a list of clips with captions.

Nothing is opened here: a folder of ten thousand clips is listed in a moment.
"""

import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from wan_vae.arguments import shown
from wan_vae.errors import UserError
from wan_vae.io.file_names import CLIP_SUFFIXES, IMAGE_SUFFIXES

LIST_SUFFIXES = (".txt", ".jsonl", ".csv")

_CACHE_SUFFIXES = (".safetensors", ".json", ".jsonl")
_PATH_COLUMNS = ("path", "video", "video_path", "image", "image_path", "file", "file_name")
_CAPTION_COLUMNS = ("caption", "text", "prompt")
_LARGEST_CAPTION = 2**20  # bytes
_LARGEST_LINE = 2**24
_NAMED = 5  # in a message
_LOGGER = logging.getLogger("wan_vae")


@dataclass(frozen=True)
class Source:
    """A clip to be cached.

    Attributes:
        path: The file.
        name: Its path below the folder, or below that of the list, with forward slashes; outputs are named by it.
        caption: Its caption: of the list, or of a .txt beside the clip.
        start, stop: Its first frame and the one after the last, None for the clip's ends.
        extra: The list's other columns.
        twin: Another clip whose output would have the same name, so that this one cannot be cached.
    """

    path: Path
    name: str
    caption: str | None = None
    start: int | None = None
    stop: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    twin: str | None = None

    @property
    def label(self) -> str:
        """The name, with the span of frames if the list gives one, such as "a.mp4[49:98]"."""
        if self.start is None and self.stop is None:
            return self.name
        return f"{self.name}[{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}]"


def list_sources(origin: Path, *, outside: Path | None = None, unread: list[str] | None = None) -> list[Source]:
    """Return the clips of a folder and its subfolders, or of a list, in the order of their names or of the list.

    A list is text with a path a line; JSON Lines of objects; or CSV with a header. Objects and rows have a path (a
    column `path`, `video`, `image`, `file` or `file_name`), and may have a caption (`caption`, `text` or `prompt`) and
    `start` and `stop`, the first frame and the one after the last. Paths are relative to the list's folder.

    Args:
        origin: The folder or the list.
        outside: A folder whose files are left out, where the outputs go.
        unread: Receives the folders below that are left out, links and those that cannot be listed.

    Raises:
        UserError: There is no such folder or list, it holds no clip, or a line of it cannot be used.
    """
    if origin.is_dir():
        sources = list(_of_folder(origin, outside, [] if unread is None else unread))
        if not sources:
            raise UserError(f"{origin} holds no clip: no video and no image, in it or in a folder below.")
        return sources
    if not origin.is_file():
        kind = "is neither a file nor a folder" if os.path.lexists(origin) else "does not exist"
        raise UserError(f"{origin} {kind}; name a folder of clips, or a list that ends in {', '.join(LIST_SUFFIXES)}.")
    suffix = origin.suffix.lower()
    if suffix not in LIST_SUFFIXES:
        if suffix in CLIP_SUFFIXES:
            return [Source(origin, origin.name, _caption_beside(origin))]
        raise UserError(f"{origin} is no list of clips; it must end in {', '.join(LIST_SUFFIXES)}.")
    sources = [_source(row, line, origin) for line, row in _rows(origin, suffix)]
    if not sources:
        raise UserError(f"{origin} names no clip; write a path a line.")
    return sources


def is_data_set(path: Path) -> bool:
    """Whether a path is a folder of clips, rather than a clip, which a folder of images is, too."""
    if not path.is_dir():
        return False
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    suffixes = {entry.suffix.lower() for entry in entries if entry.is_file()}
    if suffixes & (CLIP_SUFFIXES - IMAGE_SUFFIXES):
        return True
    return not suffixes & IMAGE_SUFFIXES and any(entry.is_dir() for entry in entries)


def named_sources(paths: Sequence[Path]) -> list[Source]:
    """Return clips that were named one by one; outputs are named by their paths below the folder that all are in."""
    whole = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100  # resolve() would follow links
    folder = Path(os.path.commonpath([path.parent for path in whole]))
    return [
        Source(path, place.relative_to(folder).as_posix(), _caption_beside(path))
        for path, place in zip(paths, whole, strict=True)
    ]


def with_twins(sources: Iterable[Source], form: str) -> list[Source]:
    """Return the clips, those marked that have the same output as one before them, which only some formats allow.

    musubi-tuner looks in no subfolders, and for videos and images in folders of their own, of which a warning tells.
    """
    if form not in ("musubi", "simpletuner"):
        return list(sources)
    first: dict[tuple[str, bool], Source] = {}
    marked = []
    for source in sources:
        name = PurePosixPath(source.name)
        if form == "musubi":
            output = name.stem, source.path.suffix.lower() in IMAGE_SUFFIXES
        else:
            output = name.with_suffix("").as_posix(), False
        other = first.setdefault(output, source)
        marked.append(source if other.path == source.path else replace(source, twin=other.name))
    if len({is_image for _, is_image in first}) == 2:
        _LOGGER.warning(
            "There are videos and images; musubi-tuner takes them from two folders, and its training on videos fails in"
            " one with caches of images: cache them apart."
        )
    return marked


def _of_folder(folder: Path, outside: Path | None, unread: list[str]) -> Iterator[Source]:
    ignored = Counter[str]()
    reasons: list[str] = []
    holds_cache = outside is not None and outside.resolve() == folder.resolve()  # as trainers have it beside the clips

    def leave_out(place: Path, reason: object) -> None:
        unread.append(place.relative_to(folder).as_posix())
        reasons.append(f"{place} ({reason})")

    for place, folders, files in os.walk(folder, onerror=lambda error: leave_out(Path(error.filename), error.strerror)):
        below = Path(place)
        for name in folders:
            if (below / name).is_symlink():
                leave_out(below / name, "a link")
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (outside is None or (below / name).resolve() != outside.resolve())
        )
        for name in sorted(files):
            path = below / name
            if name.startswith("."):
                continue
            if path.suffix.lower() in CLIP_SUFFIXES:
                yield Source(path, path.relative_to(folder).as_posix(), _caption_beside(path))
            elif path.suffix.lower() != ".txt" and not (holds_cache and path.suffix in _CACHE_SUFFIXES):
                ignored[path.suffix.lower() or "no extension"] += 1
    if reasons:
        _LOGGER.warning(f"Folders are left out: {some_of(sorted(reasons))}.")
    if ignored:
        kinds = ", ".join(f"{count} of {suffix}" for suffix, count in ignored.most_common(5))
        more = " and others" if len(ignored) > 5 else ""
        _LOGGER.warning(
            f"{folder} also holds files that are no clips by their extensions, and are left out: {kinds}{more}."
        )


def some_of(names: Sequence[str]) -> str:
    """Return names for a message: the first few, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _caption_beside(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    with beside.open("rb") as file:
        text = file.read(_LARGEST_CAPTION + 1)
    if len(text) > _LARGEST_CAPTION:
        _LOGGER.warning(f"{beside} is no caption: it is larger than {_LARGEST_CAPTION} bytes; it is left out.")
        return None
    return text.decode(errors="replace").strip()


def _rows(path: Path, suffix: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the columns of every row of a list."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    if None in row:
                        raise UserError(f"Line {reader.line_num} of {path} has more columns than the header.")
                    yield reader.line_num, {name: value for name, value in row.items() if value not in (None, "")}
                return
            for number, line in enumerate(file, start=1):
                if len(line) > _LARGEST_LINE:
                    raise UserError(f"Line {number} of {path} is longer than {_LARGEST_LINE} characters.")
                text = line.strip()
                if text and suffix == ".jsonl":
                    yield number, _object(text, number, path)
                elif text:
                    yield number, {"path": text}
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no list in UTF-8: {error}.") from error


def _object(text: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"Line {number} of {path} is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise UserError(f'Line {number} of {path} is no JSON object, such as {{"path": "a.mp4"}}.')
    return row


def _source(row: dict[str, Any], line: int, origin: Path) -> Source:
    given = [name for name in _PATH_COLUMNS if row.get(name)]
    if not given or not isinstance(row[given[0]], str) or "\0" in row[given[0]]:
        raise UserError(f"Line {line} of {origin} names no clip; give it a `path`.")
    path = origin.parent / row.pop(given[0])
    caption = next((str(row.pop(name)) for name in _CAPTION_COLUMNS if row.get(name) is not None), None)
    span = [_frame(row.pop(name, None), name, line, origin) for name in ("start", "stop")]
    try:
        name = path.relative_to(origin.parent).as_posix()
    except ValueError:
        name = path.relative_to(path.anchor).as_posix()
    name = "/".join(part for part in name.split("/") if part != "..")
    return Source(path, name, _caption_beside(path) if caption is None else caption, span[0], span[1], row)


def _frame(value: Any, name: str, line: int, origin: Path) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or re.fullmatch(r"[0-9]{1,9}", str(value)) is None:
        raise UserError(
            f"Line {line} of {origin}: {name} is {shown(value)}; it must be the number of a frame, from 0 on."
        )
    return int(value)
