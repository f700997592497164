"""Color: tags of stored video, conversion of decoded frames to full-range RGB, and resizing.

In this order: `Color` and its code points; `Scaler` and `Resizer`, which wrap libswscale; properties of pixel formats;
`RgbConverter`, which decoders use. Frames of up to 8 bits a channel are converted by swscale, deeper YUV with numpy.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

from wan_vae.errors import ClipError
from wan_vae.io.orientation import Picture

# Code points of matrices, primaries and transfer characteristics in ISO/IEC 23091-2.
UNSPECIFIED = 2

# FFmpeg's numbers of the sample ranges; 0 is unspecified.
_RANGE_LIMITED, _RANGE_FULL = 1, 2

_MATRIX_OF_CODE = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_CODE_OF_MATRIX = {"rgb": 0, "bt709": 1, "fcc": 4, "bt601": 6, "smpte240m": 7, "bt2020": 9}

_LUMA_WEIGHTS_RED_BLUE = {
    "bt709": (0.2126, 0.0722),
    "fcc": (0.30, 0.11),
    "bt601": (0.299, 0.114),
    "smpte240m": (0.212, 0.087),
    "bt2020": (0.2627, 0.0593),
}


@dataclass(frozen=True)
class Color:
    """Relation of RGB to the stored samples, passed on from a source to the outputs made from it.

    Attributes:
        matrix: "bt601", "bt709", "bt2020", "smpte240m", "fcc", or "rgb" for images and RGB video.
        full_range: For 8 bits, black is 0 and white 255, rather than 16 and 235.
        primaries: Code point in ISO/IEC 23091-2, 2 for unspecified. Passed on as a tag; colors are not converted.
        transfer: Code point of the transfer characteristics, treated the same. HDR is not tone-mapped.

    Raises:
        ClipError: The matrix is unknown, or a code point is not from 0 to 255.
    """

    matrix: str
    full_range: bool
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    def __post_init__(self) -> None:
        codes = (self.primaries, self.transfer)
        if self.matrix not in _CODE_OF_MATRIX or not all(isinstance(code, int) and 0 <= code < 256 for code in codes):
            raise ClipError(f"{self} is no color; the matrices are {', '.join(_CODE_OF_MATRIX)}.")

    @property
    def matrix_code(self) -> int:
        """Code point of the matrix in ISO/IEC 23091-2."""
        return _CODE_OF_MATRIX[self.matrix]

    @property
    def range_code(self) -> int:
        """FFmpeg's number of the range."""
        return _RANGE_FULL if self.full_range else _RANGE_LIMITED

    @property
    def range_name(self) -> str:
        """Name of the range in swscale."""
        return "full" if self.full_range else "limited"

    @property
    def is_usual(self) -> bool:
        """Whether pictures look the same without a tag: primaries and transfer of BT.709, BT.601, sRGB or none."""
        return self.primaries in (1, UNSPECIFIED, 5, 6) and self.transfer in (1, UNSPECIFIED, 4, 5, 6, 13)

    def for_yuv(self) -> "Color":
        """Color to store YUV with: `self`, or limited-range BT.709 (code point 1) if this is the usual RGB.

        Players assume the BT.709 transfer for such files, and display sRGB pictures with it. RGB in other colors keeps
        them, and those of BT.2020 (code point 9) get its matrix.
        """
        if self.matrix != "rgb":
            return self
        if self.is_usual:
            return Color("bt709", False, primaries=1, transfer=1)
        return replace(self, matrix="bt2020" if self.primaries == 9 else "bt709", full_range=False)

    def for_prores(self) -> "Color":
        """Color to store YUV in ProRes with: limited range, and the matrix of BT.709 for those without a code there."""
        matrix = self.matrix if self.matrix in ("bt601", "bt709", "bt2020") else "bt709"
        return replace(self, matrix=matrix, full_range=False)

    def for_rgb(self) -> "Color":
        """Color to store RGB with: the same primaries and transfer, no matrix, full range."""
        return replace(self, matrix="rgb", full_range=True)


RGB = Color("rgb", True)


def stored_color(frame: av.VideoFrame, primaries: int, transfer: int) -> Color:
    """Color of a frame of YUV samples; a ClipError if its matrix is not supported (YCgCo, ICtCp and others).

    Untagged clips are read as players display them: BT.709 in high definition, BT.601 otherwise, limited range.
    """
    code = int(frame.colorspace)
    if code in (0, UNSPECIFIED):  # 0 stands for RGB, which YUV samples are not
        matrix = "bt709" if frame.height >= 720 or frame.width >= 1280 else "bt601"
    elif code in _MATRIX_OF_CODE:
        matrix = _MATRIX_OF_CODE[code]
    else:
        raise ClipError(f"color matrix {code} (ISO/IEC 23091-2) cannot be read; convert the clip to BT.709 first.")
    # FFmpeg's formats yuvj* stand for full range, but a decoder keeps them where the range changes midway.
    samples = int(frame.color_range)
    full_range = samples == _RANGE_FULL or (samples != _RANGE_LIMITED and frame.format.name.startswith("yuvj"))
    return Color(matrix, full_range, primaries, transfer)


# swscale's defaults are off by several levels, and interpolate chroma at half its resolution.
_ACCURATE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


def frame_of(picture: Picture) -> av.VideoFrame:
    """Copy a (height, width, 3 or 4) RGB or RGBA picture to a frame."""
    shallow, deep = ("rgb24", "rgb48le") if picture.shape[2] == 3 else ("rgba", "rgba64le")
    layout = shallow if picture.dtype == np.uint8 else deep
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout)
    frame.pts, frame.time_base = 0, Fraction(1, 1)
    return frame


def plane(frame: av.VideoFrame, index: int, channels: int, dtype: type[np.uint8] | type[np.uint16]) -> Picture:
    """One plane as (height, width, channels): a view of the frame's memory without the padding of its lines."""
    stored = frame.planes[index]
    lines = np.frombuffer(memoryview(stored), dtype).reshape(stored.height, -1)
    return lines[:, : stored.width * channels].reshape(stored.height, stored.width, channels)


def _without_full_range(frame: av.VideoFrame) -> av.VideoFrame:
    """Copy a frame of a format yuvj*, which swscale always reads as full range, to the format yuv*."""
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name.replace("yuvj", "yuv"))
    for index in range(len(copy.planes)):
        plane(copy, index, 1, np.uint8)[:] = plane(frame, index, 1, np.uint8)
    copy.pts, copy.time_base = 0, Fraction(1, 1)
    return copy


class Scaler:
    """Converts frames to one pixel format through FFmpeg's `scale` filter with accurate rounding.

    `primaries` and `transfer` are code points that the result is tagged with.
    """

    def __init__(
        self, options: str, pixel_format: str, primaries: int = UNSPECIFIED, transfer: int = UNSPECIFIED
    ) -> None:
        self._options = f"{options}:{_ACCURATE}" if options else _ACCURATE
        self._pixel_format = pixel_format
        self._tags = f"color_primaries={primaries}:color_trc={transfer}"
        self._graph: av.filter.Graph | None = None
        self._made_for: tuple[int, int, str] | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Convert a frame. Size and format may change between calls, as they do within some streams."""
        kind = (frame.width, frame.height, frame.format.name)
        if self._graph is None or kind != self._made_for:
            self._graph, self._made_for = self._build(frame), kind
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _build(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1)
            ),
            graph.add("scale", self._options),
            graph.add("format", f"pix_fmts={self._pixel_format}"),
            graph.add("setparams", self._tags),
            graph.add("buffersink"),
        ).configure()
        return graph


class Resizer:
    """Resizes (height, width, 3 or 4) pictures to one size; pictures of that size are returned unchanged.

    Colors count by their alpha, so that those of transparent pixels, which nobody sees, do not tint the edges of what
    is beside them. Pixels that come out transparent are black.
    """

    def __init__(self, width: int, height: int) -> None:
        self._shape = (height, width)
        self._scalers: dict[str, Scaler] = {}

    def __call__(self, picture: Picture) -> Picture:
        """Resize a picture, keeping its dtype."""
        if picture.shape[:2] == self._shape:
            return picture
        if picture.shape[2] == 3:
            return self._scaled(picture)
        wide = to_depth(picture, np.dtype(np.uint16))
        # Interpolation overshoots, and clipped alpha would leave bright seams. Half of the range is room for that.
        half = self._scaled(np.concatenate([over_black(wide), wide[..., 3:]], axis=2) // 2).astype(np.uint32)
        alpha = half[..., 3:]
        straight = np.concatenate([half[..., :3] * 65535 // np.maximum(alpha, 1), alpha * 65535 // 32767], axis=2)
        resized = to_depth(np.minimum(straight, 65535).astype(np.uint16), picture.dtype)
        resized[resized[..., 3] == 0] = 0
        return resized

    def _scaled(self, picture: Picture) -> Picture:
        frame, (height, width) = frame_of(picture), self._shape
        layout = frame.format.name
        if layout not in self._scalers:
            self._scalers[layout] = Scaler(f"width={width}:height={height}", layout)
        return plane(self._scalers[layout](frame), 0, picture.shape[2], picture.dtype.type)


def is_yuv(layout: av.VideoFormat) -> bool:
    """Samples are luma and chroma; false for palettes and gray."""
    return not layout.is_rgb and len(layout.components) >= 3


def bit_depth(layout: av.VideoFormat) -> int:
    """Bits of the deepest color channel."""
    return max(component.bits for component in layout.components if not component.is_alpha)


def is_transparent(picture: Picture) -> bool:
    """A (height, width, 3 or 4) picture has a pixel that is not opaque."""
    return picture.shape[2] == 4 and bool(picture[..., 3].min() < np.iinfo(picture.dtype).max)


def with_alpha(picture: Picture) -> Picture:
    """Give a (height, width, 3) picture full alpha: (height, width, 4), same dtype."""
    return np.pad(picture, ((0, 0), (0, 0), (0, 1)), constant_values=np.iinfo(picture.dtype).max)


def over_black(picture: Picture) -> Picture:
    """Composite (height, width, 4) RGBA with straight alpha over black: (height, width, 3), same dtype."""
    top = np.iinfo(picture.dtype).max
    color, alpha = picture[..., :3].astype(np.uint32), picture[..., 3:].astype(np.uint32)
    return ((color * alpha + top // 2) // top).astype(picture.dtype)


def to_depth(picture: Picture, dtype: np.dtype[Any]) -> Picture:
    """Convert a full-range picture to uint8 or uint16."""
    if picture.dtype == dtype:
        return picture
    if dtype == np.uint16:
        return picture.astype(np.uint16) * 257
    return eight_bits(picture)


def eight_bits(picture: Picture) -> NDArray[np.uint8]:
    """Round a full-range picture, or several, of uint16 to uint8; uint8 is returned as it is."""
    if picture.dtype == np.uint8:
        return picture.astype(np.uint8, copy=False)
    return ((picture.astype(np.uint32) + 128) // 257).astype(np.uint8)


def kind_of(frame: av.VideoFrame) -> tuple[str, int, int, int, int]:
    """What an `RgbConverter` is set up for: pixel format, width, height, and the code points of matrix and range."""
    return frame.format.name, frame.width, frame.height, int(frame.colorspace), int(frame.color_range)


class RgbConverter:
    """Converts frames of one kind to full-range RGB (height, width, 3), or RGBA (height, width, 4).

    The result is uint8 for frames of up to 8 bits a channel, and uint16 (0 to 65535) for deeper ones.

    Attributes:
        color: Color of the stream.
    """

    def __init__(
        self, frame: av.VideoFrame, primaries: int, transfer: int, size: tuple[int, int] | None = None
    ) -> None:
        """Set up for frames of the kind of `frame`, see `kind_of`.

        Args:
            frame: A frame of that kind.
            primaries: Code point of the stream.
            transfer: Code point of the stream.
            size: Width and height that are wanted of the result. Samples of 8 bits without alpha are scaled to it as
                they are converted: to half of them it takes a sixth of the time of first converting all, and is nearer
                to exact arithmetic, as there are neither rounded nor clipped colors in between.
        """
        layout = frame.format
        if re.search(r"f(16|32)[lb]e$", layout.name):
            raise ClipError(
                f"samples of kind {layout.name} are floating-point numbers, of which nothing says what is white;"
                " convert them to 16 bits first."
            )
        self.color = Color("rgb", True, primaries, transfer)
        self._depth = bit_depth(layout)
        self._deep = self._depth > 8
        self._alpha = layout.name == "pal8" or any(component.is_alpha for component in layout.components)
        self._numpy_matrix = self._deep and is_yuv(layout)
        self._gray_is_limited = int(frame.color_range) == _RANGE_LIMITED
        options = "out_range=full"
        if is_yuv(layout):
            self.color = stored_color(frame, primaries, transfer)
            matrix, samples = self.color.matrix, self.color.range_name
            options = f"in_color_matrix={matrix}:in_range={samples}:out_range=full"
            if self._numpy_matrix:
                options = f"in_color_matrix={matrix}:in_range={samples}:out_color_matrix={matrix}:out_range={samples}"
        if self._numpy_matrix:
            pixel_format = f"yuv{'a' if self._alpha else ''}444p{self._depth}le"
        elif self._deep:
            pixel_format = "rgba64le" if self._alpha else "rgb48le"
        else:
            pixel_format = "rgba" if self._alpha else "rgb24"
        if size is not None and not self._deep and not self._alpha:
            options += f":width={size[0]}:height={size[1]}"
        self._scale = Scaler(options, pixel_format)

    def __call__(self, frame: av.VideoFrame) -> Picture:
        """Convert a frame to RGB or RGBA, of the size that is wanted if that can be done at once, else of its own."""
        name = frame.format.name
        if name == "gray" or (name.startswith("gray") and name.endswith("le")):
            return self._from_gray(frame)
        if self._numpy_matrix:
            return self._from_deep_yuv(self._scale(frame))
        if name.startswith("yuvj") and not self.color.full_range:
            frame = _without_full_range(frame)
        return plane(self._scale(frame), 0, 4 if self._alpha else 3, np.uint16 if self._deep else np.uint8)

    def _from_gray(self, frame: av.VideoFrame) -> Picture:
        """RGB of a luma-only frame, whose range swscale ignores."""
        dtype = np.uint16 if self._deep else np.uint8
        black, span, top = 0, (1 << self._depth) - 1, np.iinfo(dtype).max
        if self._gray_is_limited:
            black, span = 16 << (self._depth - 8), 219 << (self._depth - 8)
        luma = (plane(frame, 0, 1, dtype).astype(np.float32) - black) * np.float32(top / span)
        return np.repeat(np.clip(np.rint(luma), 0, top).astype(dtype), 3, axis=2)

    def _from_deep_yuv(self, frame: av.VideoFrame) -> Picture:
        """RGB of a YUV 4:4:4 frame of more than 8 bits.

        swscale would map white to 65283 instead of 65535 here, so it only interpolates the chroma.
        """
        unit, top = 1 << (self._depth - 8), (1 << self._depth) - 1
        black, luma_span, chroma_span = (0, top, top) if self.color.full_range else (16 * unit, 219 * unit, 224 * unit)
        luma, blue_difference, red_difference = (
            (plane(frame, index, 1, np.uint16)[..., 0].astype(np.float32) - zero) * np.float32(65535 / span)
            for index, (zero, span) in enumerate([(black, luma_span), *[(128 * unit, chroma_span)] * 2])
        )
        red_weight, blue_weight = _LUMA_WEIGHTS_RED_BLUE[self.color.matrix]
        green_weight = 1 - red_weight - blue_weight
        red = luma + np.float32(2 * (1 - red_weight)) * red_difference
        blue = luma + np.float32(2 * (1 - blue_weight)) * blue_difference
        green = (luma - np.float32(red_weight) * red - np.float32(blue_weight) * blue) / np.float32(green_weight)
        channels = [red, green, blue]
        if self._alpha:
            channels.append(plane(frame, 3, 1, np.uint16)[..., 0] * np.float32(65535 / top))
        picture = np.empty((frame.height, frame.width, len(channels)), np.uint16)
        for index, channel in enumerate(channels):
            picture[..., index] = np.clip(np.rint(channel), 0, 65535)
        return picture
