"""Size and pixel format conversion through libswscale."""

from fractions import Fraction

import av
import av.filter
import numpy as np

from wan_vae.video.orientation import Picture

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
