"""Carrying sound over from one file to another, packet by packet, without decoding it."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.error
import av.filter

from wan_vae.errors import ClipError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.packet import Packet


def file_url(path: Path) -> str:
    """How to name a file to FFmpeg so that a colon in its name is not taken for a protocol."""
    return f"file:{path}"


def reason(error: Exception) -> str:
    """What an error of PyAV, Pillow or the system says went wrong, without numbers and file names."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass(frozen=True)
class AudioSource:
    """The sound of a file between two moments.

    Attributes:
        path: The file.
        start: Seconds on the file's own clock (on which its first picture need not be at 0), to be heard with the
            output's first picture.
        stop: Likewise, where the sound ends; None for its own end.
    """

    path: Path
    start: Fraction = Fraction(0)
    stop: Fraction | None = None


class AudioCopy:
    """Copies the packets of a file's first audio stream into an output, keeping step with its pictures."""

    def __init__(self, source: AudioSource, output: "OutputContainer") -> None:
        """Add the stream to `output`, into which nothing may have been written yet.

        Raises:
            ClipError: The file cannot be read or has no sound, or `output` cannot hold the codec of the sound.
        """
        self._source = source
        try:
            self._container = av.open(file_url(source.path))
        except (av.error.FFmpegError, OSError) as error:
            raise ClipError(f"the sound of {source.path} cannot be read ({reason(error)}).") from error
        try:
            if not self._container.streams.audio:
                raise ClipError(f"{source.path} has no sound to carry over.")
            stream = self._container.streams.audio[0]
            _check_fits(stream, output.format.name)
            self._copy = output.add_stream_from_template(stream)
            self._output = output
            self._packets = self._read(stream)
            self._next = next(self._packets, None)
        except BaseException:
            self._container.close()
            raise

    def advance(self, seconds: Fraction) -> None:
        """Copy what is heard in the output before `seconds`, which never goes down from call to call.

        A packet is copied whole, so that sound can begin and end up to a packet (some 20 ms) outside the asked span.
        """
        limit = self._source.start + seconds
        if self._source.stop is not None:
            limit = min(limit, self._source.stop)
        while self._next is not None:
            packet = self._next
            unit = packet.time_base
            timestamp = packet.pts if packet.pts is not None else packet.dts
            if timestamp is not None:
                if timestamp * unit >= limit:
                    return
                if (timestamp + (packet.duration or 1)) * unit > self._source.start:
                    offset = round(self._source.start / unit)
                    packet.pts = timestamp - offset
                    packet.dts = packet.pts
                    packet.stream = self._copy
                    self._output.mux_one(packet)
            self._next = next(self._packets, None)

    def _read(self, stream: "AudioStream") -> "Iterator[Packet[AudioStream]]":
        try:
            yield from (packet for packet in self._container.demux(stream) if packet.size)
        except av.error.FFmpegError as error:
            raise ClipError(
                f"the sound of {self._source.path} is damaged ({reason(error)}); fetch or copy the file again."
            ) from error

    def close(self) -> None:
        """Close the file the sound comes from."""
        self._container.close()


def _check_fits(stream: "AudioStream", container: str) -> None:
    """Write a header with this stream alone to memory: FFmpeg's own list of what fits where has gaps."""
    codec = stream.codec_context.name
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError(f"{container} files cannot hold {codec} sound; those ending in .mkv can.") from error
