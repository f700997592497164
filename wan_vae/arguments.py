"""Checks of plain values that callers pass in. Those of tensors, dtypes and devices are in `validation`."""

import os
import reprlib
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from wan_vae.errors import UserError

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: object) -> str:
    """Return a value as messages show it: short, whatever it is."""
    kind = type(value).__name__
    if hasattr(value, "shape"):
        return f"a {kind} of shape {shown(tuple(value.shape))}" if isinstance(value.shape, tuple) else f"a {kind}"
    try:
        return _REPR.repr(value)
    except ValueError:  # Python does not convert numbers of thousands of digits
        return f"a {kind} of thousands of digits"


def check_count(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Return `value` if it is a whole number from `low` to `high`; numpy's count as well.

    Raises:
        UserError: It is not; the message calls it `name`.
    """
    if not _is_whole(value) or value < low or (high is not None and value > high):
        wanted = f"from {low} to {high}" if high is not None else "above 0" if low == 1 else f"from {low} on"
        raise UserError(f"{name} is {shown(value)}; it must be a whole number {wanted}.")
    return int(value)


def check_type(name: str, value: object, kind: Any, wanted: str) -> None:
    """Raise a UserError, which says that `name` must be `wanted`, if `value` is not of a type."""
    if not isinstance(value, kind):
        raise UserError(f"{name} is {shown(value)}; it must be {wanted}.")


def check_flag(name: str, value: object) -> None:
    """Raise a UserError if `value` is neither true nor false."""
    check_type(name, value, bool, "True or False")


def check_path(name: str, value: Any) -> Path:
    """Return a path.

    Raises:
        UserError: It is neither text nor a path, or it holds a null character, which no file's name can.
    """
    check_type(name, value, (str, os.PathLike), "a path")
    if not str(value) or "\0" in str(value):
        raise UserError(f"{name} is {shown(value)}, which cannot be the name of a file.")
    return Path(value)


def check_clip_options(size: Any, frames: Any, length: Any = None) -> None:
    """Check the types of options that clips are opened with; their ranges are the reader's to check.

    Raises:
        UserError: `size` is neither None nor a pair of whole numbers, of which one may be None, `frames` no pair of
            whole numbers or Nones, `length` no whole number above 0 or None, or it and `frames` both say where to end.
    """
    given = [side for side in size if side is not None] if _is_pair(size) else []
    if size is not None and not (given and all(_is_whole(side) for side in given)):
        raise UserError(
            f"size is {shown(size)}; it must be None, or two whole numbers, such as (640, 360), of which one may be"
            " None."
        )
    if not (_is_pair(frames) and all(bound is None or _is_whole(bound) for bound in frames)):
        raise UserError(f"frames is {shown(frames)}; it must be two whole numbers or Nones, such as (0, 49).")
    if length is not None:
        check_count("length", length)
        if frames[1] is not None:
            raise UserError(
                f"length is {length}, but frames ends at {frames[1]}; give one of the two, such as --frames"
                f" {frames[0] or 0}: --length {length}."
            )


def _is_pair(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
