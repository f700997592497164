"""Errors that a user can fix.

Each message is one sentence with the invalid value and what would work. The command line prints that sentence and exits
with code 2. They are `ValueError`s, so that library users can catch them without importing this module. A violated
invariant of the package is an `AssertionError` and keeps its traceback.
"""

import errno
import logging
import re

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The system's numbers for no room on a disk."""

_LONGEST = 1000  # characters of a message; a name in a damaged file can have millions


def first_line(error: Exception) -> str:
    """Return the first line of what a compiler or a driver says, which may go on for pages."""
    return str(error).strip().partition("\n")[0]


def reason(error: Exception) -> str:
    """Return the text of an error of PyAV, Pillow or the system, without error numbers and file names."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def printable(text: object) -> str:
    """Return text as one line that a terminal only shows.

    Names and messages from files can hold line breaks, which would forge further messages, control sequences, and bytes
    that are no UTF-8: all are escaped, and the middle of a very long text is left out.
    """
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} [...] {line[-_LONGEST // 2 :]}"


# What torch, its allocators and libraries, and the system say. The word "memory" alone is not enough: faults of kernels
# are "illegal memory accesses".
_SHORTAGES = re.compile(
    r"out of memory|not enough memory|allocate memory|alloc_failed|bad_alloc|start new thread|failed to map segment",
    re.I,
)


def memory_shortage(error: Exception) -> str | None:
    """Return one line about the memory that an error says is missing; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror if error.errno == errno.ENOMEM else None
    # torch has a class for CUDA's shortages only; libraries that find no room are errors of imports.
    words = isinstance(error, ImportError | RuntimeError) and _SHORTAGES.search(str(error)) is not None
    return first_line(error) or type(error).__name__ if words or isinstance(error, MemoryError) else None


class UserError(ValueError):
    """A request cannot be fulfilled; the message says what would work."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or not of a Wan VAE."""


class ClipError(UserError):
    """A clip cannot be read or written."""


class LatentsError(UserError):
    """A latents file is missing, damaged, or of another model."""


class _Printable(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), None
        return True


logging.getLogger("wan_vae").addFilter(_Printable())
