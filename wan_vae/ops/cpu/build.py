"""The library of compiled CPU kernels: built on request, kept in the user's cache, absent wherever it cannot be had.

Nothing here compiles unasked. `build_kernels` compiles; `library` finds what was built. The kernels run on PyTorch's
own threads: the library is linked against no OpenMP runtime, its calls are bound to the one that PyTorch has loaded.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401  (brings the OpenMP runtime that the library looks for)

from wan_vae.errors import UserError
from wan_vae.ops.autotune import cache_folder

_SOURCES = Path(__file__).parent / "src"
_COMPILE = ("-c", "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fopenmp")
_COMPILERS = ("g++", "c++", "clang++")


def build_kernels() -> Path:
    """Compile the kernels for this machine, unless that was done before.

    Returns:
        The shared library, in `$XDG_CACHE_HOME/wan_vae` or `~/.cache/wan_vae`. From then on `library` finds it.

    Raises:
        UserError: There is no C++ compiler, or it cannot compile this for PyTorch on this machine.
    """
    compiler = _compiler()
    stem = f"{_stem()}-{_digest(' '.join(compiler).encode() + _run([*compiler, '--version']))}"
    folder = cache_folder()
    for path in folder.glob(f"{stem}-*.so"):
        if _load(path) is not None:
            library.cache_clear()
            return path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as place:
            path = _compile(compiler, Path(place))
            target = folder / f"{stem}-{_digest(path.read_bytes())}.so"
            path.replace(target)
    except OSError as error:
        raise UserError(
            f"The kernels cannot be built in {folder} ({error}); set XDG_CACHE_HOME to a writable one."
        ) from error
    if _load(target) is None:
        target.unlink(missing_ok=True)
        raise UserError(
            f"What {compiler[0]} built does not fit this PyTorch's OpenMP runtime; set CXX to a GNU compiler."
        )
    library.cache_clear()
    return target


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, if `build_kernels` has run here with this version of the source; compiles nothing."""
    try:
        found = sorted(cache_folder().glob(f"{_stem()}-*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return None
    return next(filter(None, map(_load, found)), None)


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
    # Linked without -fopenmp: a second OpenMP runtime would have threads of its own, which fight PyTorch's for cores.
    _run([*compiler, "-shared", "-o", "kernels.so", *objects], place)
    return place / "kernels.so"


def _run(command: list[str], folder: Path | None = None) -> bytes:
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (
            error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
        )
        raise UserError(
            f"{command[0]} cannot compile the kernels; install a recent g++, or set CXX.\n{detail}"
        ) from error


@functools.cache
def _stem() -> str:
    source = b"".join(path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.is_file())
    return f"kernels-{_digest(source + repr(_COMPILE).encode())}-{_digest(_processor().encode())}"


def _processor() -> str:
    """What decides which instructions `-march=native` may use."""
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
        # The loader maps the file without a look at it; one that is cut short would end the process.
        if path.stem.rpartition("-")[2] != _digest(path.read_bytes()):
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def ensure_kernels() -> None:
    """TEMPORARY."""
