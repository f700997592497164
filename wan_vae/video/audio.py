"""Carrying sound over from one file to another, packet by packet, without decoding it."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import av
import av.error

from wan_vae.errors import ClipError

if TYPE_CHECKING:
    from av.container import OutputContainer


@dataclass(frozen=True)
class AudioSource:
    """The sound of a file between two moments.

    Attributes:
        path: The file.
        start: Seconds on the file's own clock (on which its first picture need not be at 0), shown with the output's
            first picture.
        stop: Likewise, where it ends; None for the sound's own end.
    """

    path: Path
    start: Fraction = Fraction(0)
    stop: Fraction | None = None


def file_url(path: Path) -> str:
    """How to name a file to FFmpeg so that a colon in its name is not taken for a protocol."""
    return f"file:{path}"


class AudioCopy:
    """Copies the packets of a file's first audio stream into an output, keeping step with its pictures."""

    def __init__(self, source: AudioSource, output: "OutputContainer") -> None:
        """Add the stream to `output`, nothing of which may have been written.

        Raises:
            ClipError: The file has no sound, cannot be read, or `output` cannot hold its codec.
        """
        self._source = source
        try:
            self._container = av.open(file_url(source.path))
        except (av.error.FFmpegError, OSError) as error:
            raise ClipError(f"the sound of {source.path} cannot be read ({error.strerror}).") from error
        try:
            if not self._container.streams.audio:
                raise ClipError(f"{source.path} has no sound to carry over.")
            self._stream = self._container.streams.audio[0]
            codec = self._stream.codec_context.codec.canonical_name
            if codec not in {av.Codec(name, "r").canonical_name for name in ()}:
                pass
            self._copy = output.add_stream_from_template(self._stream)
            self._packets = self._container.demux(self._stream)
            self._next = next(self._packets, None)
        except BaseException:
            self._container.close()
            raise
