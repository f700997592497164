"""An encoder of H.264 whose two fields are pictures of their own, which FFmpeg's encoders cannot write.

ITU-T H.264, 7.3: macroblocks are of the type I_PCM, samples as they are.
"""

import re
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.io.sources import Array

_PROFILE, _LEVEL = 77, 30  # Main, which allows fields, in 4:2:0 of 8 bits
_FRAME_NUMBERS = 8  # bits


class _Bits:
    def __init__(self) -> None:
        self._bits = ""

    def fixed(self, value: int, count: int) -> None:
        self._bits += f"{value:0{count}b}"

    def golomb(self, *values: int) -> None:
        """Exponential-Golomb codes, of values that are not negative."""
        for value in values:
            code = f"{value + 1:b}"
            self._bits += "0" * (len(code) - 1) + code

    def samples(self, values: Array) -> None:
        self._bits += "0" * (-len(self._bits) % 8) + "".join(f"{value:08b}" for value in values.ravel())

    def unit(self, kind: int, importance: int = 1) -> bytes:
        """A NAL unit of the bits."""
        bits = self._bits + "1"
        bits += "0" * (-len(bits) % 8)
        payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
        escaped = re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", payload)
        return b"\0\0\0\1" + bytes([importance << 5 | kind]) + escaped


def _parameters(height: int, width: int, rate: int) -> bytes:
    sequence = _Bits()
    sequence.fixed(_PROFILE, 8)
    sequence.fixed(0, 8)
    sequence.fixed(_LEVEL, 8)
    sequence.golomb(0, _FRAME_NUMBERS - 4, 2, 1)  # frames are shown in the order in which they are coded
    sequence.fixed(0, 1)
    sequence.golomb(width // 16 - 1, height // 32 - 1)
    sequence.fixed(0b0010_1, 5)  # fields, no macroblocks of both, no cropping; what follows says how long they take
    sequence.fixed(0b00001, 5)
    sequence.fixed(1, 32)
    sequence.fixed(2 * rate, 32)
    sequence.fixed(0b10000, 5)
    picture = _Bits()
    picture.golomb(0, 0)
    picture.fixed(0, 2)
    picture.golomb(0, 0, 0)
    picture.fixed(0, 3)
    picture.golomb(0, 0, 0)
    picture.fixed(0b100, 3)
    return sequence.unit(7) + picture.unit(8)


def _field(planes: list[Array], number: int, bottom: bool) -> bytes:
    is_first = not number and not bottom
    bits = _Bits()
    bits.golomb(0, 7, 0)
    bits.fixed(number % (1 << _FRAME_NUMBERS), _FRAME_NUMBERS)
    bits.fixed(0b10 | bottom, 2)
    if is_first:
        bits.golomb(0)
    bits.fixed(0, 2 if is_first else 1)
    bits.golomb(0, 1)
    luma, *chroma = (plane[int(bottom) :: 2] for plane in planes)
    for row in range(0, luma.shape[0], 16):
        for column in range(0, luma.shape[1], 16):
            bits.golomb(25)
            bits.samples(luma[row : row + 16, column : column + 16])
            for plane in chroma:
                bits.samples(plane[row // 2 : row // 2 + 8, column // 2 : column // 2 + 8])
    return bits.unit(5 if is_first else 1)


def fields_of(frames: list[list[Array]], rate: int) -> Iterator[tuple[bytes, bytes]]:
    """The two fields of each frame, whose planes are in 4:2:0 of 8 bits; height a multiple of 32, width of 16."""
    height, width = frames[0][0].shape
    for number, planes in enumerate(frames):
        head = b"\0\0\0\1\x09\xf0"  # where a picture begins
        top = head + (b"" if number else _parameters(height, width, rate)) + _field(planes, number, bottom=False)
        yield top, head + _field(planes, number, bottom=True)


def write_fields(path: Path, frames: list[list[Array]], rate: int, *, apart: Collection[int], group: int = 0) -> Path:
    """Write frames to a container, one packet each, but those of the numbers in `apart` as two, one a field.

    Every `group` frames, the stream can be joined: a frame there, as the first, is an IDR picture.
    """
    step = group or len(frames)
    fields = [pair for begin in range(0, len(frames), step) for pair in fields_of(frames[begin : begin + step], rate)]
    raw = path.with_suffix(".h264")
    raw.write_bytes(b"".join(map(b"".join, fields)))
    if path == raw:
        return path
    with av.open(str(raw)) as source, av.open(str(path), "w") as container:
        stream: Any = container.add_stream_from_template(source.streams.video[0])
        for number, pair in enumerate(fields):
            packets = pair if number in apart else [b"".join(pair)]
            for place, data in enumerate(packets):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, Fraction(1, 2 * rate)
                packet.pts = packet.dts = 2 * number + place
                packet.duration, packet.is_keyframe = 2 // len(packets), not (number % step or place)
                container.mux(packet)
    return path


def gray_planes(pictures: Array) -> list[list[Array]]:
    """Planes of (count, height, width) pictures of luma."""
    chroma = np.full((pictures.shape[1] // 2, pictures.shape[2] // 2), 128, np.uint8)
    return [[picture, chroma, chroma] for picture in pictures]
