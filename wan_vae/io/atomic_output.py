"""Atomic outputs: written under a temporary name in the same folder, then renamed; after an error nothing is left.

Imports neither torch nor PyAV, since the command line checks its outputs before it loads either.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path

from wan_vae.errors import UserError


def check_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
    inputs: tuple[str | os.PathLike[str], ...] = (),
    may_be_folder: bool = False,
) -> None:
    """Refuse an output that cannot be written or would destroy something, before any work is done.

    Missing parent folders are no obstacle: `written_beside` creates them.

    Args:
        path: The output. A symbolic link stands for its target.
        overwrite: Replace an existing file. Non-empty folders, devices and pipes are never replaced.
        inputs: Files and folders the output is made from.
        may_be_folder: Accept an existing empty folder as the output.

    Raises:
        UserError: The output is also an input, its folder is not writable, or something is in its place.
    """
    target = Path(path).resolve()
    for source in (Path(name).resolve() for name in inputs):
        inside = source.is_dir() and source in target.parents
        if target.exists() and source.exists() and (inside or target.samefile(source)):
            raise UserError(f"{path} is both input and output; name another output.")
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: {folder} is not a folder; name another place.")
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
        raise UserError(
            f"{path} exists; pass --overwrite (in Python, overwrite=True) to replace it, or name another output."
        )


def check_distinct(*outputs: Path) -> None:
    """Raise a UserError if two outputs of one run are the same path, or one lies in the other."""
    for first, second in combinations(outputs, 2):
        one, other = first.resolve(), second.resolve()
        if one == other:
            raise UserError(f"{second} is named for two outputs; name another for one of them.")
        if one in other.parents or other in one.parents:
            raise UserError(f"{first} and {second} are two outputs, one inside the other; name places apart.")


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, with the same suffix, to write a file or a folder to.

    Missing parent folders are created. On success the temporary path is renamed to `path` in one step, and new files
    get the permissions the umask allows. On any exception, including Ctrl-C, all of it is removed.
    """
    path = Path(path).resolve()
    temporary = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    created = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        mask = os.umask(0)  # it cannot be read without being set
        os.umask(mask)
        # safetensors gives its files mode 0600.
        permissions = path.stat().st_mode if path.is_file() else 0o666 & ~mask
        for file in (file for file in (temporary, *temporary.rglob("*")) if file.is_file()):
            file.chmod(permissions)
        if path.is_dir():
            path.rmdir()  # not every system renames over a folder; check_output made sure that it is empty
        temporary.replace(path)
        created = []
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        for folder in created:
            with suppress(OSError):  # another output may be in it by now
                folder.rmdir()


def remove_partial(folder: Path, stem: str = "*") -> None:
    """Remove temporary files of `written_beside` left by killed processes.

    Args:
        folder: Folder of the outputs. No process may be writing to it.
        stem: Name of the outputs without suffix; all by default.
    """
    for leftover in folder.glob(f".{stem}.partial-*"):
        leftover.unlink(missing_ok=True)  # another process may have removed it first
