"""Outputs that are either whole or absent: written beside their final place, then renamed into it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wan_vae.errors import UserError


def check_output(path: Path, *, overwrite: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Refuse an output that could not be written, or that would destroy something, before any work is done.

    Raises:
        UserError: `path` is one of `inputs`, exists while `overwrite` is false, lies in a folder that is missing or
            not writable, or is a folder holding files (a folder is never replaced, not even with `overwrite`).
    """
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f"{path} is both input and output; name another output.")
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {folder}; create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: the folder {folder} is not writable; name another place.")
    if path.is_dir():
        if any(path.iterdir()):
            raise UserError(f"{path} is a folder that already holds files; name a new or empty one.")
    elif path.exists() and not overwrite:
        raise UserError(f"{path} exists; pass --overwrite to replace it, or name another output.")


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` (same folder, same suffix) to write a file or a folder to.

    On success it is renamed onto `path` in one step; on any exception, Ctrl-C included, it is removed, so that a
    half-written output never stands under the asked name and nothing is left behind.
    """
    beside = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield beside
        if path.is_dir():
            path.rmdir()  # rename does not replace a folder everywhere; check_output saw that it is empty
        beside.replace(path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)
