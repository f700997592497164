"""Copying an audio stream from one file to another, packet by packet, without decoding."""

import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import av.error
import av.filter

from wan_vae.errors import ClipError, reason
from wan_vae.io.file_names import open_container

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.packet import Packet

_logger = logging.getLogger("wan_vae")


@dataclass(frozen=True)
class AudioSource:
    """A span of the first audio stream of a file.

    Attributes:
        path: The file.
        start: Timestamp in the file, in seconds, of the first frame of the output; the file's first need not have 0.
        stop: Timestamp of the end, in seconds; None for the end of the file.
    """

    path: str | os.PathLike[str]
    start: Fraction = Fraction(0)
    stop: Fraction | None = None


class AudioCopy:
    """Copies the packets of an `AudioSource` into an output, interleaved with its video."""

    def __init__(self, source: AudioSource, output: "OutputContainer") -> None:
        """Add the stream to `output`, not yet started; a ClipError if it is missing, unreadable or does not fit."""
        self._source = source
        self._last: int | None = None  # time of the last packet
        self._has_warned = False
        try:
            self._container = open_container(source.path)
        except (av.error.FFmpegError, OSError) as error:
            raise ClipError(f"the audio of {source.path} cannot be read ({reason(error)}).") from error
        try:
            if not self._container.streams.audio:
                raise ClipError(f"{source.path} has no audio to carry over.")
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
        """Copy the packets that start before `seconds` of the output; `seconds` must not decrease between calls.

        Packets are copied whole, so the audio can start and end one packet (about 20 ms) outside the span.
        """
        limit = self._source.start + seconds
        if self._source.stop is not None:
            limit = min(limit, self._source.stop)
        while self._next is not None:
            packet = self._next
            unit = packet.time_base
            timestamp = packet.pts if packet.pts is not None else packet.dts
            if timestamp is not None and self._last is not None and timestamp <= self._last:
                # Recordings that were joined, or a time that is damaged; no container takes times that go back.
                if not self._has_warned:
                    _logger.warning(
                        f"The times of the audio of {self._source.path} go back at {float(self._last * unit):.3f} s;"
                        " what follows is left out until they are beyond."
                    )
                self._has_warned = True
            elif timestamp is not None:
                if timestamp * unit >= limit:
                    return
                self._last = timestamp
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
                f"the audio of {self._source.path} is damaged ({reason(error)}); fetch or copy the file again."
            ) from error

    def close(self) -> None:
        """Close the source file."""
        self._container.close()


def _check_fits(stream: "AudioStream", container: str) -> None:
    """Try to write a header with this stream to memory: FFmpeg's table of codecs per container has gaps."""
    if stream.codec_context is None:
        raise ClipError("the audio is of a kind that the installed FFmpeg does not know.")
    codec = stream.codec_context.name
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError(f"{container} files cannot hold {codec} audio; those ending in .mkv can.") from error
