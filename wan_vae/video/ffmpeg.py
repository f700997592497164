"""Small matters of talking to FFmpeg."""

from pathlib import Path


def file_url(path: Path) -> str:
    """How to name a file to FFmpeg so that a colon in its name is not taken for a protocol."""
    return f"file:{path}"


def reason(error: Exception) -> str:
    """What an error of PyAV, Pillow or the system says went wrong, without numbers and file names."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
