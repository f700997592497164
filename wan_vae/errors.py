"""Errors a user can mend.

Each carries one sentence with the value at fault and what would work; the command line prints that sentence alone and
exits with code 2. They are `ValueError`s, so that library callers need not import this module to catch them. A broken
invariant of our own is an `AssertionError` and keeps its traceback.
"""


class UserError(ValueError):
    """Something the caller asked for cannot be done; the message says what would work."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or not one of ours."""


class ClipError(UserError):
    """A clip cannot be read or written."""


class LatentsError(UserError):
    """A latents file is missing, damaged, or does not belong to the model at hand."""
