"""Which files of a folder are taken for clips, by the ends of their names, and the names that FFmpeg is given.

What a file is, reading tells.
"""

import os

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".apng", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"}
    | {".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
CLIP_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def file_url(path: str | os.PathLike[str]) -> str:
    """URL of a file for FFmpeg, which would read "a:b.mp4" as protocol "a"."""
    return f"file:{os.fspath(path)}"
