"""A contact sheet: a few frames of a clip, each with its reconstruction and the error between the two."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wan_vae.arguments import check_count
from wan_vae.errors import UserError
from wan_vae.evaluation.metrics import levels, psnr
from wan_vae.io.color import eight_bits, over_black
from wan_vae.io.frames import Frames

ROWS = 5
GAIN = 8
LARGEST_WIDTH = 1900
_LARGEST_CELL_HEIGHT = 480
_SMALLEST_COLUMN = 240
_MARGIN = 28
_GAP = 10
_BACKGROUND = (24, 24, 27)
_BRIGHT = (236, 236, 240)
_MUTED = (158, 158, 168)
# 256 colors from no error to the largest, ever brighter, so that the scale also reads in gray.
HEAT_STOPS = np.array([(0, 0, 0), (66, 16, 112), (190, 48, 84), (248, 146, 28), (255, 250, 190)])
_CHANNELS = [np.interp(np.arange(256), np.linspace(0, 255, len(HEAT_STOPS)), channel) for channel in HEAT_STOPS.T]
_HEAT = np.rint(np.stack(_CHANNELS, axis=1)).astype(np.uint8)


@dataclass(frozen=True)
class SheetLayout:
    """Positions on a sheet, in pixels."""

    cell_width: int  # of a picture as drawn
    cell_height: int
    column: int  # width of a column without the gap; wider than a narrow picture, to fit the labels
    text: int  # font size

    @classmethod
    def of(cls, width: int, height: int) -> "SheetLayout":
        """Return the layout for pictures of this size; large ones shrink, small ones grow by an integer factor."""
        widest = (LARGEST_WIDTH - 2 * _MARGIN - 2 * _GAP) // 3
        scale = min(widest / width, _LARGEST_CELL_HEIGHT / height)
        if scale >= 1:
            scale = min(math.floor(scale), math.ceil(_SMALLEST_COLUMN / width))
        cell_width, cell_height = (max(1, round(side * scale)) for side in (width, height))
        column = max(cell_width, _SMALLEST_COLUMN)
        return cls(cell_width, cell_height, column, text=max(13, column // 28))

    def size(self, rows: int) -> tuple[int, int]:
        """Return the width and height of a sheet."""
        bottom = self.cell(rows, 0)[1] - self._line - _GAP
        return 2 * (_MARGIN + _GAP) + 3 * self.column, bottom + _MARGIN

    def title(self, column: int) -> tuple[int, int]:
        """Return the left end and the vertical center of a column's title."""
        return _MARGIN + column * (self.column + _GAP), _MARGIN + self.text // 2

    def label(self, row: int, column: int) -> tuple[int, int]:
        """Return the left end and the vertical center of a cell's label."""
        left, top = self.cell(row, column)
        return left, top - self._line // 2

    def cell(self, row: int, column: int) -> tuple[int, int]:
        """Return the left and top edge of a picture."""
        first = _MARGIN + self.text + self._line + _GAP
        return self.title(column)[0], first + row * (self.cell_height + self._line + _GAP)

    @property
    def _line(self) -> int:
        return 2 * self.text


class ContactSheet:
    """Collects `ROWS` evenly spaced frames of a clip, scaled to the size they are drawn at.

    Pixels are drawn square. The error of a pixel is the mean absolute difference of its channels, multiplied by `GAIN`
    and drawn as a color from black to white.
    """

    def __init__(self, frames: int) -> None:
        """Start a sheet for a clip of this many frames; if the clip ends earlier, the later rows are left out."""
        check_count("frames", frames)
        self._wanted = {round((frames - 1) * row / (ROWS - 1)) for row in range(ROWS)}
        self._frames = 0
        self._rows: list[tuple[int, float, list[Image.Image]]] = []  # number of the frame, PSNR in dB, pictures
        self._layout: SheetLayout | None = None

    def add(self, source: Frames, reconstruction: NDArray[np.uint8]) -> None:
        """Add the next frame, (height, width, 3 or 4) uint8 or uint16, and its reconstruction of the same size.

        Pictures with alpha are drawn over black; errors are those of all four channels.
        """
        if self._frames in self._wanted:
            height, width, channels = reconstruction.shape
            self._layout = SheetLayout.of(width, height)
            left, error = eight_bits(source), error_picture(eight_bits(source), reconstruction)
            value = psnr(levels(source), levels(reconstruction), value_range=255)
            if channels == 4:
                left, reconstruction = over_black(left), over_black(reconstruction)
            pictures = (left, reconstruction, error)
            self._rows.append((self._frames, value, [_scaled(picture, self._layout) for picture in pictures]))
        self._frames += 1

    def draw(self) -> Image.Image:
        """Return the sheet, RGB."""
        layout = self._layout
        if layout is None:
            raise UserError("A contact sheet has no frame; add at least one.")
        sheet = Image.new("RGB", layout.size(len(self._rows)), _BACKGROUND)
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(size=layout.text)
        for column, title in enumerate(("source", "reconstruction", f"error, {GAIN}x")):
            draw.text(layout.title(column), title, _BRIGHT, font, anchor="lm")
        _draw_scale(sheet, layout, font)
        for row, (frame, value, cells) in enumerate(self._rows):
            quality = "identical" if value == math.inf else f"PSNR {value:.2f} dB"
            draw.text(layout.label(row, 0), f"frame {frame}", _MUTED, font, anchor="lm")
            draw.text(layout.label(row, 1), quality, _MUTED, font, anchor="lm")
            for column, cell in enumerate(cells):
                sheet.paste(cell, layout.cell(row, column))
        return sheet

    def save(self, path: Path) -> None:
        """Write the sheet as a PNG file."""
        self.draw().save(path, format="PNG", optimize=True)


def error_picture(source: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the error between two pictures (height, width, 3) as colors: black is 0, white is 255 / GAIN levels."""
    error = np.abs(source.astype(np.float32) - reconstruction).mean(axis=2)
    return _HEAT[np.clip(np.rint(error * GAIN), 0, 255).astype(np.uint8)]


def _scaled(picture: NDArray[np.uint8], layout: SheetLayout) -> Image.Image:
    image = Image.fromarray(picture)
    shrinks = layout.cell_width < image.width or layout.cell_height < image.height
    filtering = Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
    return image.resize((layout.cell_width, layout.cell_height), filtering)


def _draw_scale(sheet: Image.Image, layout: SheetLayout, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    """Draw the color scale at the right end of the error column's title."""
    draw = ImageDraw.Draw(sheet)
    left, middle = layout.title(2)
    right = left + layout.column
    most = f"{255 / GAIN:.0f} levels"
    draw.text((right, middle), most, _MUTED, font, anchor="rm")
    bar_right = right - math.ceil(draw.textlength(most, font)) - layout.text // 2
    width, height = 5 * layout.text, layout.text // 2
    bar = Image.fromarray(_HEAT[None]).resize((width, height))
    sheet.paste(bar, (bar_right - width, middle - height // 2))
    draw.text((bar_right - width - layout.text // 2, middle), "0", _MUTED, font, anchor="rm")
