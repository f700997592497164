"""Decoded frames to RGB.

How a clip's RGB relates to the YUV it is stored as.

Size and pixel format conversion through libswscale.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import av
import av.filter
import numpy as np

from wan_vae.errors import ClipError
from wan_vae.io.orientation import Picture

UNSPECIFIED = 2
"""Code point of an unspecified matrix, primaries or transfer (ISO/IEC 23091-2)."""

BT709_CODE = 1

RANGE_LIMITED, RANGE_FULL = 1, 2
"""Numbers FFmpeg gives the two sample ranges; 0 is unspecified."""

_MATRIX_OF_CODE = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    9: "bt2020",
    10: "bt2020",
}
_CODE_OF_MATRIX = {"rgb": 0, "bt709": 1, "fcc": 4, "bt601": 6, "smpte240m": 7, "bt2020": 9}

_RED_AND_BLUE_IN_LUMA = {
    "bt709": (0.2126, 0.0722),
    "fcc": (0.30, 0.11),
    "bt601": (0.299, 0.114),
    "smpte240m": (0.212, 0.087),
    "bt2020": (0.2627, 0.0593),
}


@dataclass(frozen=True)
class Color:
    """How RGB and the stored YUV relate; carried from a source to the output made from it.

    Attributes:
        matrix: "bt601", "bt709", "bt2020", "smpte240m", "fcc", or "rgb" for pictures and RGB video, which have none.
        full_range: Whether black and white are the ends of the sample range (0 and 255 for 8 bits) rather than 16
            and 235.
        primaries: Code point of ISO/IEC 23091-2, 2 for unspecified; passed through untouched.
        transfer: Likewise, for the transfer characteristics.
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
        """Number FFmpeg gives the range."""
        return RANGE_FULL if self.full_range else RANGE_LIMITED

    @property
    def range_name(self) -> str:
        """Name swscale gives the range."""
        return "full" if self.full_range else "limited"

    @property
    def luma_weights(self) -> tuple[float, float, float]:
        """Shares of red, green and blue in luma; they sum to 1. Only for a matrix other than "rgb"."""
        red, blue = _RED_AND_BLUE_IN_LUMA[self.matrix]
        return red, 1 - red - blue, blue

    def for_yuv(self) -> "Color":
        """The color to store as YUV: itself, or limited-range BT.709 throughout for what was RGB.

        BT.709's transfer is what players assume of such a file anyway, and show sRGB pictures with.
        """
        return Color("bt709", False, BT709_CODE, BT709_CODE) if self.matrix == "rgb" else self

    def for_rgb(self) -> "Color":
        """The color to store as RGB: primaries and transfer stay, the matrix and the range have no part in it."""
        return replace(self, matrix="rgb", full_range=True)


RGB = Color("rgb", True)


def stored_color(
    matrix_code: int, range_code: int, primaries: int, transfer: int, *, width: int, height: int, always_full: bool
) -> Color:
    """The color of YUV samples, given their tags.

    Players take an untagged clip for BT.709 when it is of high definition and for BT.601 otherwise, and its range for
    limited; so do we, since the RGB wanted is the one that was seen. `always_full` is for the formats that have no
    limited range (FFmpeg's yuvj*).

    Raises:
        ClipError: The matrix is one that cannot be undone here (YCgCo, ICtCp and the like).
    """
    if matrix_code == UNSPECIFIED or matrix_code == 0:  # RGB samples never come here, so a 0 is a wrong tag
        matrix = "bt709" if height >= 720 or width >= 1280 else "bt601"
    elif matrix_code in _MATRIX_OF_CODE:
        matrix = _MATRIX_OF_CODE[matrix_code]
    else:
        raise ClipError(
            f"color matrix {matrix_code} (ISO/IEC 23091-2) cannot be read; convert the clip to BT.709 first."
        )
    return Color(matrix, always_full or range_code == RANGE_FULL, primaries, transfer)


# Without these swscale trades accuracy for speed: off by several levels, and chroma at half its resolution.
ACCURATE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


def picture_format(picture: Picture) -> str:
    """FFmpeg's name for the layout of a (height, width, 3) picture."""
    return "rgb24" if picture.dtype == np.uint8 else "rgb48le"


def frame_of(picture: Picture) -> av.VideoFrame:
    """A (height, width, 3) RGB picture as a frame of its own memory."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=picture_format(picture))
    frame.pts, frame.time_base = 0, Fraction(1, 1)
    return frame


def plane(frame: av.VideoFrame, index: int, channels: int, dtype: type[np.uint8] | type[np.uint16]) -> Picture:
    """One plane as (height, width, channels), a view of the frame's memory without the padding of its lines."""
    stored = frame.planes[index]
    lines = np.frombuffer(memoryview(stored), dtype).reshape(stored.height, -1)
    return lines[:, : stored.width * channels].reshape(stored.height, stored.width, channels)


class Scaler:
    """Converts frames to one pixel format, by the options of FFmpeg's `scale` filter and `ACCURATE`."""

    def __init__(self, options: str, pixel_format: str) -> None:
        self._options = f"{options}:{ACCURATE}" if options else ACCURATE
        self._pixel_format = pixel_format
        self._graph: av.filter.Graph | None = None
        self._made_for: tuple[int, int, str] | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame converted. Sizes and formats may change from call to call, as they do within some streams."""
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
            graph.add("buffersink"),
        ).configure()
        return graph


class Resizer:
    """Brings (height, width, 3) pictures to one size, leaving those that have it as they are."""

    def __init__(self, width: int, height: int) -> None:
        self._shape = (height, width)
        self._scalers: dict[str, Scaler] = {}

    def __call__(self, picture: Picture) -> Picture:
        """The picture at the size, of the same dtype."""
        if picture.shape[:2] == self._shape:
            return picture
        layout = picture_format(picture)
        if layout not in self._scalers:
            height, width = self._shape
            self._scalers[layout] = Scaler(f"width={width}:height={height}", layout)
        return plane(self._scalers[layout](frame_of(picture)), 0, 3, picture.dtype.type)


def is_yuv(layout: av.VideoFormat) -> bool:
    """Whether samples are luma and chroma; palettes and greys are not."""
    return not layout.is_rgb and len(layout.components) >= 3


def is_gray(layout: av.VideoFormat) -> bool:
    """Whether samples are luma alone, of 8 bits or little-endian."""
    return layout.name == "gray" or (layout.name.startswith("gray") and layout.name.endswith("le"))


def has_alpha(layout: av.VideoFormat) -> bool:
    """Whether pixels can be transparent."""
    return layout.name == "pal8" or any(component.is_alpha for component in layout.components)


def bit_depth(layout: av.VideoFormat) -> int:
    """Bits of the deepest color channel."""
    return max(component.bits for component in layout.components if not component.is_alpha)


def is_transparent(picture: Picture) -> bool:
    """Whether a (height, width, 3 or 4) picture is less than opaque anywhere."""
    return picture.shape[2] == 4 and bool(picture[..., 3].min() < np.iinfo(picture.dtype).max)


def over_black(picture: Picture) -> Picture:
    """A (height, width, 4) RGBA picture, alpha not multiplied in, laid over black: (height, width, 3), same dtype."""
    top = np.iinfo(picture.dtype).max
    color, alpha = picture[..., :3].astype(np.uint32), picture[..., 3:].astype(np.uint32)
    return ((color * alpha + top // 2) // top).astype(picture.dtype)


class RgbConverter:
    """Converts the frames of one stream to RGB, (height, width, 3) or with alpha (height, width, 4), full range.

    uint8 for frames of at most 8 bits a channel, uint16 spanning 0..65535 for deeper ones.
    """

    def __init__(self, frame: av.VideoFrame, primaries: int, transfer: int) -> None:
        """Set up for frames like `frame`, of a stream with these primaries and transfer.

        Raises:
            ClipError: The stream's color matrix is not supported.
        """
        layout = frame.format
        self.color: Color = RGB
        self._deep = bit_depth(layout) > 8
        self._alpha = has_alpha(layout)
        self._depth = bit_depth(layout)
        self._numpy_matrix = self._deep and is_yuv(layout)
        self._gray_is_limited = int(frame.color_range) == RANGE_LIMITED
        options = "out_range=full"
        if is_yuv(layout):
            self.color = stored_color(
                int(frame.colorspace),
                int(frame.color_range),
                primaries,
                transfer,
                width=frame.width,
                height=frame.height,
                always_full=layout.name.startswith("yuvj"),
            )
            matrix, samples = self.color.matrix, self.color.range_name
            options = f"in_color_matrix={matrix}:in_range={samples}:out_range=full"
            if self._numpy_matrix:
                options = f"in_color_matrix={matrix}:in_range={samples}:out_color_matrix={matrix}:out_range={samples}"
        self._scale = Scaler(options, self._pixel_format())

    def __call__(self, frame: av.VideoFrame) -> Picture:
        """The frame as RGB or RGBA."""
        if is_gray(frame.format):
            return self._from_gray(frame)
        if self._numpy_matrix:
            return self._from_deep_yuv(self._scale(frame))
        return plane(self._scale(frame), 0, 4 if self._alpha else 3, np.uint16 if self._deep else np.uint8)

    def _pixel_format(self) -> str:
        if self._numpy_matrix:
            return f"yuv{'a' if self._alpha else ''}444p{self._depth}le"
        if self._deep:
            return "rgba64le" if self._alpha else "rgb48le"
        return "rgba" if self._alpha else "rgb24"

    def _from_gray(self, frame: av.VideoFrame) -> Picture:
        """RGB of a frame of luma alone, whose range swscale does not look at."""
        dtype = np.uint16 if self._deep else np.uint8
        black, span, top = 0, (1 << self._depth) - 1, np.iinfo(dtype).max
        if self._gray_is_limited:
            black, span = 16 << (self._depth - 8), 219 << (self._depth - 8)
        luma = (plane(frame, 0, 1, dtype).astype(np.float32) - black) * np.float32(top / span)
        return np.repeat(np.clip(np.rint(luma), 0, top).astype(dtype), 3, axis=2)

    def _from_deep_yuv(self, frame: av.VideoFrame) -> Picture:
        """RGB of a frame with chroma at full resolution, in the stream's own depth.

        swscale takes white to 65283 rather than 65535 here, and so cannot be trusted with more than 8 bits. It is
        right about where chroma lies and how to interpolate it.
        """
        unit, top = 1 << (self._depth - 8), (1 << self._depth) - 1
        black, luma_span, chroma_span = (0, top, top) if self.color.full_range else (16 * unit, 219 * unit, 224 * unit)
        luma, blue_difference, red_difference = (
            (plane(frame, index, 1, np.uint16)[..., 0].astype(np.float32) - zero) * np.float32(65535 / span)
            for index, (zero, span) in enumerate([(black, luma_span), *[(128 * unit, chroma_span)] * 2])
        )
        red_weight, green_weight, blue_weight = self.color.luma_weights
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
