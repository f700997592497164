"""The library of compiled CPU kernels: built once per machine, kept in the user's cache, optional everywhere.

`ensure_kernels` builds at the first CPU inference and never fails, `build_kernels` builds now or says why it cannot,
`library` loads what was built. The library is linked against no OpenMP runtime: its calls bind to the one that PyTorch
has loaded, so the kernels run on PyTorch's threads.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch  # noqa: F401  (loads the OpenMP runtime that the library binds to)

from wan_vae.arguments import check_flag
from wan_vae.errors import UserError
from wan_vae.ops.autotune import cache_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SOURCES = Path(__file__).parent / "src"
_COMPILE = ("-c", "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fopenmp")
_COMPILERS = ("g++", "c++", "clang++")
# Seconds for one run of the compiler, and for another process's build.
_TIMEOUT = 300
_logger = logging.getLogger("wan_vae")

_lock = threading.RLock()
# None: the environment decides.
_may_build: bool | None = None
_ensured = False


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


# The thread that holds the lock does not exist in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def ensure_kernels() -> None:
    """Build the CPU kernels unless they exist, cannot be built here, or building is turned off.

    For the start of every inference on a CPU, outside of code that torch.compile or torch.export traces. The first call
    in a process may compile for about 5 seconds; it logs a warning where that fails. Later calls do nothing.
    """
    global _ensured
    if _ensured:
        return
    with _lock:
        enabled = os.environ.get("WAN_VAE_BUILD_KERNELS", "").strip().lower() not in ("0", "false", "no", "off")
        enabled = enabled if _may_build is None else _may_build
        if not _ensured and enabled and library() is None:
            try:
                build_kernels()
            except UserError as error:
                reason = str(error)
                _warn_once(f"CPU inference runs without the compiled kernels, at about half the speed: {reason}")
        _ensured = True


def set_kernel_building(enabled: bool) -> None:
    """Turn the automatic build of the CPU kernels on or off for this process.

    The default is on, and off where the environment has `WAN_VAE_BUILD_KERNELS=0`. Kernels that were built before are
    used in either case.

    Args:
        enabled: Whether the first inference on a CPU may compile the kernels.

    Raises:
        UserError: It is neither True nor False.
    """
    check_flag("enabled", enabled)
    global _may_build, _ensured
    with _lock:
        _may_build, _ensured = enabled, False


def build_kernels() -> Path:
    """Compile the CPU kernels for this machine, unless that was done before.

    Returns:
        The shared library, in `$XDG_CACHE_HOME/wan_vae` or `~/.cache/wan_vae`.

    Raises:
        UserError: There is no C++ compiler, it cannot compile the kernels, or the cache folder cannot be used.
    """
    compiler = _compiler()
    stem = f"{_stem()}-{_digest(' '.join(compiler).encode() + _run([*compiler, '--version']))}"
    folder = cache_folder()
    with _lock:
        try:
            _check_trusted(folder)
            found = _find(folder, stem)
            if found is None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _check_trusted(folder)
                with _locked(folder / "build.lock"):
                    # Another process may have built it in the meantime.
                    found = _find(folder, stem) or _build(compiler, folder, stem)
        except OSError as error:
            raise UserError(
                f"The kernels cannot be built in {folder} ({error}); set XDG_CACHE_HOME to a writable folder."
            ) from error
        library.cache_clear()
        return found


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, if this version of them was built for this machine. Compiles nothing."""
    folder = cache_folder()
    try:
        _check_trusted(folder)
        found = sorted(folder.glob(f"{_stem()}-*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
    except UserError as error:
        _warn_once(f"CPU inference runs without the compiled kernels, at about half the speed: {error}")
        return None
    except OSError:
        return None
    return next(filter(None, map(_load, found)), None)


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning(message)


def _check_trusted(path: Path) -> None:
    """Raise a UserError if another user could have written a file or folder whose code is about to run."""
    if not hasattr(os, "geteuid") or not path.exists():  # Windows keeps other users out of the profile
        return
    status, user = path.stat(), os.geteuid()
    if status.st_uid not in (user, 0):
        raise UserError(
            f"{path} belongs to user {status.st_uid}; it must belong to user {user}, who runs this: remove it, or set"
            " XDG_CACHE_HOME to another folder."
        )
    if status.st_mode & 0o022:
        raise UserError(
            f"{path} has mode {status.st_mode & 0o7777:04o}, so that other users can write to it; it must be writable"
            f" by its owner only: run chmod go-w '{path}'."
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that one process at a time compiles; hold nothing where the system has no such locks."""
    with path.open("w") as file:
        locked, deadline = False, time.monotonic() + _TIMEOUT
        while fcntl is not None and not locked:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"Another process has held {path} for {_TIMEOUT} s; remove that file and try again."
                    raise UserError(message) from None
                time.sleep(0.05)
            except OSError:  # a network file system without locks
                break
        try:
            yield
        finally:
            if locked:
                # Closing is not enough: a forked process may still have the file open.
                fcntl.flock(file, fcntl.LOCK_UN)


def _find(folder: Path, stem: str) -> Path | None:
    return next((path for path in folder.glob(f"{stem}-*.so") if _load(path) is not None), None)


def _build(compiler: list[str], folder: Path, stem: str) -> Path:
    _logger.info("Compiling the CPU kernels, once for this machine (about 5 s)")
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as place:
        path = _compile(compiler, Path(place))
        path.chmod(0o700)
        target = folder / f"{stem}-{_digest(path.read_bytes())}.so"
        path.replace(target)
    if _load(target) is None:
        target.unlink(missing_ok=True)
        raise UserError(
            f"What {compiler[0]} built does not fit this PyTorch's OpenMP runtime; set CXX to a GNU compiler."
        )
    return target


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]) is not None:
            return command
    missing = named[0] if named else " or ".join(_COMPILERS)
    raise UserError(f"There is no C++ compiler ({missing}); install g++, or set CXX to one.")


def _compile(compiler: list[str], place: Path) -> Path:
    sources = [str(path) for path in sorted(_SOURCES.glob("*.cpp"))]
    _run([*compiler, *_COMPILE, *sources], place)
    objects = sorted(path.name for path in place.glob("*.o"))
    # Linked without -fopenmp: the threads of a second OpenMP runtime would compete with PyTorch's for the cores.
    _run([*compiler, "-shared", "-o", "kernels.so", *objects], place)
    return place / "kernels.so"


def _run(command: list[str], folder: Path | None = None) -> bytes:
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_TIMEOUT).stdout
    except (OSError, subprocess.SubprocessError) as error:
        output = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error).encode()
        lines = output.decode(errors="replace").strip().splitlines() or [str(error)]
        reason = next((line for line in lines if "error" in line), lines[-1])
        raise UserError(
            f"{command[0]} cannot compile the kernels ({reason}); install a recent g++, or set CXX to one."
        ) from error


@functools.cache
def _stem() -> str:
    source = b"".join(path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.is_file())
    return f"kernels-{_digest(source + repr(_COMPILE).encode())}-{_digest(_processor().encode())}"


def _processor() -> str:
    """Return what decides which instructions `-march=native` may use."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    return platform.machine() + "".join(line for line in first if line.split(":")[0].strip() in names)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        _check_trusted(path)
        # The loader does not check the file, and a truncated one would end the process.
        if path.stem.rpartition("-")[2] != _digest(path.read_bytes()):
            return None
        return ctypes.CDLL(str(path))
    except UserError as error:
        _warn_once(f"A compiled kernel library is not loaded: {error}")
        return None
    except OSError:
        return None
