"""Outputs that are either whole or absent: written beside their final place, then renamed into it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

from wan_vae.errors import UserError


def check_output(path: Path, *, overwrite: bool, inputs: tuple[Path, ...] = (), may_be_folder: bool = False) -> None:
    """Refuse an output that could not be written, or that would destroy something, before any work is done.

    Args:
        path: The output. Where it is a symbolic link, what it leads to counts.
        overwrite: Whether an existing file may be replaced. A folder that holds files never is, nor a device or pipe.
        inputs: What the output is made from.
        may_be_folder: Whether the output can be a folder; an empty one is then taken over.

    Raises:
        UserError: One of these speaks against it.
    """
    target = path.resolve()
    for source in inputs:
        if target.exists() and source.exists() and _belongs_to(target, source.resolve()):
            raise UserError(f"{path} is both input and output; name another output.")
    folder = target.parent
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {folder}; create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: the folder {folder} is not writable; name another place.")
    if target.is_dir():
        if not may_be_folder:
            raise UserError(f"{path} is a folder; name a file.")
        if any(target.iterdir()):
            raise UserError(f"{path} is a folder that already holds files; name a new or empty one.")
    elif target.exists() and not target.is_file():
        raise UserError(f"{path} is a device or a pipe and cannot be replaced by a file; name a file.")
    elif target.exists() and not overwrite:
        raise UserError(f"{path} exists; pass --overwrite to replace it, or name another output.")


def check_distinct(*outputs: Path) -> None:
    """Refuse outputs of one run of which one would replace or lie in another.

    Raises:
        UserError: Two of them are the same, or one is a folder that the other is in.
    """
    for first, second in combinations(outputs, 2):
        one, other = first.resolve(), second.resolve()
        if one == other:
            raise UserError(f"{second} is named for two outputs; name another for one of them.")
        if one in other.parents or other in one.parents:
            raise UserError(f"{first} and {second} are two outputs, one inside the other; name places apart.")


def _belongs_to(target: Path, source: Path) -> bool:
    return target.samefile(source) or (source.is_dir() and source in target.parents)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` (same folder, same suffix) to write a file or a folder to.

    On success it is renamed onto `path` in one step; on any exception, Ctrl-C included, it is removed, so that a
    half-written output never stands under the asked name and nothing is left behind.
    """
    path = path.resolve()
    beside = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield beside
        if path.is_dir():
            path.rmdir()  # rename does not replace a folder everywhere; check_output saw that it is empty
        elif beside.is_file():
            # Some writers, safetensors among them, let nobody else read what they wrote.
            beside.chmod(path.stat().st_mode if path.exists() else _permissions_of_new_files())
        beside.replace(path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)


def remove_partial(folder: Path, stem: str = "*") -> None:
    """Remove what `written_beside` could not, of processes that were killed.

    Args:
        folder: Where they wrote; nobody may be writing there now.
        stem: Of the outputs, their name without its suffix; default all.
    """
    for leftover in folder.glob(f".{stem}.partial-*"):
        leftover.unlink(missing_ok=True)  # of several processes, another may have been faster


def _permissions_of_new_files() -> int:
    mask = os.umask(0)  # it cannot be read without being set
    os.umask(mask)
    return 0o666 & ~mask
