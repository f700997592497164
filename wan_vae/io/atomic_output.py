"""Atomic outputs: written under a temporary name in the same folder, then renamed; after an error nothing is left.

A temporary name is `.STEM.partial-PID-RANDOM.SUFFIX`, and beside it lies a file `.lock` that its process holds locked:
what a killed process left has no lock any more, on whatever host or in whatever container it ran.

Imports neither torch nor PyAV, since the command line checks its outputs before it loads either.
"""

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import combinations, count
from pathlib import Path

from wan_vae.errors import UserError

if sys.platform != "win32":
    import fcntl

_TEMPORARY = re.compile(r"(?s)(\.(?P<key>.*)\.partial-[0-9]+(?:-[0-9a-f]{8})?)(?:\..*)?")
# Long names must leave room for what a temporary name adds.
_KEY_CHARACTERS = 16
_SUFFIX_CHARACTERS = 16

named = False
"""Whether outputs of this process may have their final names already; for the message after a signal."""


class OutputTakenError(UserError):
    """Something appeared under the output's name while it was made; the message says where the output is instead."""


def check_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
    inputs: tuple[str | os.PathLike[str], ...] = (),
    may_be_folder: bool = False,
    must_be_utf8: bool = False,
) -> None:
    """Refuse an output that cannot be written or would destroy something, before any work is done.

    Missing parent folders are no obstacle: `written_beside` creates them. What killed processes left of the same output
    is removed.

    Args:
        path: The output. A symbolic link stands for its target.
        overwrite: Replace an existing file. Non-empty folders, devices and pipes are never replaced.
        inputs: Files and folders the output is made from.
        may_be_folder: The output is a folder; accept an existing empty one.
        must_be_utf8: safetensors will read the output, and opens no other names.

    Raises:
        UserError: The output is also an input, its folder is not writable, its name is not possible, or something is in
            its place.
    """
    if os.fspath(path) in ("", ".", "-"):
        raise UserError(f"{str(path)!r} is no name for an output; name a file.")
    target = _resolve(path)
    if target.name.endswith((".", " ")):
        raise UserError(f"{path} ends in a dot or a space; name it without.")
    if must_be_utf8 and not _is_utf8(target):
        raise UserError(f"{path} is not in UTF-8, and safetensors opens no other names; name another output.")
    if target.exists() and any(_holds(source, target) for source in inputs):
        raise UserError(f"{path} is both input and output; name another output.")
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: {folder} is not a folder; name another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: the folder {folder} is not writable; name another place.")
    longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for part in target.relative_to(folder).parts:
        if len(os.fsencode(part)) > longest:
            raise UserError(f"{path} has a name of {len(os.fsencode(part))} bytes; {folder} takes at most {longest}.")
    if target.is_dir():
        if not may_be_folder:
            raise UserError(f"{path} is a folder; name a file.")
        if any(target.iterdir()):
            raise UserError(f"{path} is a folder that already holds files; name a new or empty one.")
        if target == Path.cwd():
            raise UserError(f"{path} is the current folder and cannot be replaced; name a folder in it.")
    elif target.exists() and not target.is_file():
        raise UserError(f"{path} is a device or a pipe and cannot be replaced by a file; name a file.")
    elif target.exists() and may_be_folder:
        raise UserError(f"{path} exists and is not an empty folder; name a new folder.")
    elif target.exists() and not overwrite:
        raise UserError(
            f"{path} exists; pass --overwrite (in Python, overwrite=True) to replace it, or name another output."
        )
    if target.parent == folder:
        remove_partial(folder, target.stem)


def check_distinct(*outputs: Path) -> None:
    """Raise a UserError if two outputs of one run are the same path, or one lies in the other."""
    for first, second in combinations(outputs, 2):
        one, other = first.resolve(), second.resolve()
        if one == other:
            raise UserError(f"{second} is named for two outputs; name another for one of them.")
        if one in other.parents or other in one.parents:
            raise UserError(f"{first} and {second} are two outputs, one inside the other; name places apart.")


@contextmanager
def written_beside(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, with the same suffix, to write a file or a folder to.

    Missing parent folders are created. On success the temporary path is renamed to `path` in one step, and new files
    get the permissions the umask allows. On any exception, including Ctrl-C, all of it is removed.

    Args:
        path: The output. A symbolic link stands for its target.
        overwrite: Replace a file that is there in the end. Whatever else is there is kept, and the output gets the
            first free name of the kind "clip-1.mp4": the work may have taken hours.

    Raises:
        OutputTakenError: The output has another name than `path`.
    """
    global named
    path = _resolve(path)
    created = [folder for folder in path.parents if not folder.exists()]
    lock = temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, lock = _lock(path)
        temporary = lock.with_suffix(path.suffix[:_SUFFIX_CHARACTERS])
        yield temporary
        mask = os.umask(0)  # it cannot be read without being set
        os.umask(mask)
        # safetensors gives its files mode 0600.
        permissions = path.stat().st_mode if path.is_file() else 0o666 & ~mask
        for file in (file for file in (temporary, *temporary.rglob("*")) if file.is_file()):
            _store(file)
            file.chmod(permissions)
        named = True
        try:
            _rename(temporary, path, overwrite=overwrite)
        except FileExistsError:
            kept = _rename_beside(temporary, path)
            raise OutputTakenError(
                f"{path} appeared while it was made, and was not replaced; what was made is {kept}."
            ) from None
    finally:
        if temporary is not None:
            _remove(temporary)
        if lock is not None:
            os.close(descriptor)
            lock.unlink(missing_ok=True)
        for folder in created:
            with suppress(OSError):  # another output may be in it by now
                folder.rmdir()


def remove_partial(folder: Path, stem: str | None = None) -> None:
    """Remove temporary files and folders of `written_beside` left by killed processes.

    Those of living processes, of this host or of others, are kept.

    Args:
        folder: Folder of the outputs.
        stem: Name of the outputs without suffix; all by default.
    """
    if sys.platform == "win32":
        return  # there locks are not held
    for path in list(folder.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or (stem is not None and match["key"] != stem[:_KEY_CHARACTERS]):
            continue
        with suppress(OSError):  # the process lives, or it is another user's
            try:
                descriptor = os.open(folder / f"{match[1]}.lock", os.O_RDWR)
            except FileNotFoundError:
                _remove(path)
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(descriptor)


def _resolve(path: str | os.PathLike[str]) -> Path:
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            Path(path).stat()  # finds links in a circle, which `realpath` does not report
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise UserError(
            f"{path} cannot be written ({getattr(error, 'strerror', error)}); name another place."
        ) from error


def _holds(source: str | os.PathLike[str], target: Path) -> bool:
    try:
        place = Path(os.path.realpath(source))
        return target.samefile(place) or (place.is_dir() and place in target.parents)
    except (OSError, ValueError):  # the source's reader says what is wrong with it
        return False


def _is_utf8(path: Path) -> bool:
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return False
    return True


def _lock(path: Path) -> tuple[int, Path]:
    """Create and lock the lock file of a new temporary name; return its descriptor and path."""
    while True:
        writer = f"{os.getpid()}-{os.urandom(4).hex()}"
        lock = path.with_name(f".{path.stem[:_KEY_CHARACTERS]}.partial-{writer}.lock")
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if sys.platform != "win32":
            with suppress(OSError):  # a file system without locks; there nothing is removed either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if lock.exists():  # `remove_partial` may have come first
            return descriptor, lock
        os.close(descriptor)


def _store(file: Path) -> None:
    """Wait until a file is on its disk: its name may get there first, and a power failure would leave it empty.

    Some file systems tell only here that they are full.
    """
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot be asked
            raise
    finally:
        os.close(descriptor)


def _rename(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a file, replacing a file only with `overwrite`, or a folder, replacing at most an empty folder.

    Raises:
        FileExistsError: Something else is there.
    """
    try:
        if overwrite or temporary.is_dir():
            if temporary.is_dir() and path.is_dir():
                path.rmdir()  # not every system renames over a folder
            temporary.replace(path)
        else:
            os.link(temporary, path)  # a rename would replace what is there
    except OSError as error:
        if os.path.lexists(path):
            raise FileExistsError(path) from error
        temporary.replace(path)  # a file system without links, else the same error again


def _rename_beside(temporary: Path, path: Path) -> Path:
    for number in count(1):
        # Longer stems might leave no room for the number.
        beside = path.with_name(f"{path.stem[: 3 * _KEY_CHARACTERS]}-{number}{path.suffix}")
        with suppress(FileExistsError):
            _rename(temporary, beside, overwrite=False)
            return beside
    raise AssertionError


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
