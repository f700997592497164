"""Which files of a folder are taken for clips, by the ends of their names; and how FFmpeg is given a file.

What a file is, reading tells.
"""

import os
from typing import TYPE_CHECKING, BinaryIO

from wan_vae.errors import ClipError

if TYPE_CHECKING:
    from av.container import InputContainer

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".apng", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"}
    | {".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
CLIP_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def file_url(path: str | os.PathLike[str]) -> str:
    """URL of a file for FFmpeg, which would read "a:b.mp4" as protocol "a"."""
    return f"file:{os.fspath(path)}"


_LISTS = frozenset({"concat", "dash", "hls", "imf", "rtsp", "sdp"})
"""What FFmpeg calls text that names other files or addresses, whose content it would take for the file's own."""


def open_container(source: str | os.PathLike[str] | BinaryIO) -> "InputContainer":
    """Open a clip with FFmpeg, which reads that file alone: an upload must not make a server read files of its own.

    Raises:
        ClipError: It is a list of other files.
        FFmpegError: It cannot be opened.
    """
    import av

    file, protocol = (source, "none") if not isinstance(source, str | os.PathLike) else (file_url(source), "file")
    # `options` would be for the streams too, and PyAV 16.0 crashes then where streams come late, as in FLV. Titles in
    # other encodings than UTF-8 are of no interest here.
    container = av.open(file, "r", container_options={"protocol_whitelist": protocol}, metadata_errors="replace")
    if _LISTS & set(container.format.name.split(",")):
        container.close()
        name = str(source) if protocol == "file" else "The file"
        raise ClipError(f"{name} is a list of other files ({container.format.name}); name one of these, or join them.")
    return container
