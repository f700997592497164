"""Decoded frames to RGB."""

import av
import numpy as np

from wan_vae.video.color import RANGE_LIMITED, RGB, Color, stored_color
from wan_vae.video.orientation import Picture
from wan_vae.video.scaling import Scaler, plane


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
