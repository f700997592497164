"""Errors that a user can fix.

Each message is one sentence with the invalid value and what would work. The command line prints that sentence and exits
with code 2. They are `ValueError`s, so that library users can catch them without importing this module. A violated
invariant of the package is an `AssertionError` and keeps its traceback.
"""


class UserError(ValueError):
    """A request cannot be fulfilled; the message says what would work."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or not of a Wan VAE."""


class ClipError(UserError):
    """A clip cannot be read or written."""


class LatentsError(UserError):
    """A latents file is missing, damaged, or of another model."""
