from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wan_vae.evaluation.contact_sheet import GAIN, LARGEST_WIDTH, ContactSheet, SheetLayout, error_picture


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def sheet_of(source: np.ndarray, reconstruction: np.ndarray, announced: int | None = None) -> np.ndarray:
    sheet = ContactSheet(len(source) if announced is None else announced)
    for pair in zip(source, reconstruction, strict=True):
        sheet.add(*pair)
    return np.asarray(sheet.draw())


def cell(sheet: np.ndarray, layout: SheetLayout, row: int, column: int) -> np.ndarray:
    left, top = layout.cell(row, column)
    return sheet[top : top + layout.cell_height, left : left + layout.cell_width]


def test_contact_sheet_cells_hold_the_frames_and_their_errors() -> None:
    source, reconstruction = clip(9, 60, 320), clip(9, 60, 320, seed=1)
    sheet, layout = sheet_of(source, reconstruction), SheetLayout.of(320, 60)
    assert sheet.shape == (*layout.size(5)[::-1], 3)
    for row, frame in enumerate((0, 2, 4, 6, 8)):
        assert np.array_equal(cell(sheet, layout, row, 0), source[frame])
        assert np.array_equal(cell(sheet, layout, row, 1), reconstruction[frame])
        assert np.array_equal(cell(sheet, layout, row, 2), error_picture(source[frame], reconstruction[frame]))


def test_error_picture_of_larger_errors_is_brighter() -> None:
    source = np.zeros((1, 256, 3), dtype=np.uint8)
    picture = error_picture(source, source + np.arange(256, dtype=np.uint8)[None, :, None]).astype(int)
    brightness = picture[0].sum(axis=1)
    assert brightness[0] == 0
    assert (np.diff(brightness)[: 255 // GAIN] > 0).all()
    assert (picture[0, 255 // GAIN + 1 :] == picture[0, -1]).all()
    assert np.array_equal(error_picture(source, source), source)


@pytest.mark.parametrize(("frames", "rows"), [(1, 1), (2, 2), (4, 4), (5, 5), (300, 5)])
def test_contact_sheet_of_few_frames_has_few_rows(frames: int, rows: int) -> None:
    source = clip(frames, 8, 240)
    sheet, layout = sheet_of(source, source), SheetLayout.of(240, 8)
    assert sheet.shape[:2] == layout.size(rows)[::-1]
    assert np.array_equal(cell(sheet, layout, 0, 0), source[0])
    assert np.array_equal(cell(sheet, layout, rows - 1, 0), source[-1])


def test_contact_sheet_of_a_clip_that_ends_early_has_fewer_rows() -> None:
    source = clip(10, 8, 240)
    sheet, layout = sheet_of(source, source, announced=20), SheetLayout.of(240, 8)
    assert sheet.shape[:2] == layout.size(2)[::-1]
    assert np.array_equal(cell(sheet, layout, 0, 0), source[0])
    assert np.array_equal(cell(sheet, layout, 1, 0), source[5])


def test_contact_sheet_has_labels() -> None:
    source = clip(1, 240, 240)
    sheet, layout = sheet_of(source, source), SheetLayout.of(240, 240)
    for left, middle in (layout.title(0), layout.title(1), layout.title(2), layout.label(0, 0), layout.label(0, 1)):
        line = sheet[middle - layout.text // 2 : middle + layout.text // 2, left : left + 3 * layout.text]
        assert line.max() > 100


@pytest.mark.parametrize("size", [(3840, 2160), (1920, 1080), (602, 256), (1080, 1920), (160, 90), (19, 13), (4, 4000)])
def test_sheet_layout_of_any_size_fits_a_screen(size: tuple[int, int]) -> None:
    layout = SheetLayout.of(*size)
    width, _ = layout.size(5)
    assert width <= LARGEST_WIDTH
    assert layout.column >= max(200, layout.cell_width)
    if size[1] < 1000:
        assert layout.cell_width >= 200
        assert layout.cell_width / layout.cell_height == pytest.approx(size[0] / size[1], rel=0.01)


def test_contact_sheet_of_small_pictures_magnifies_without_blur() -> None:
    source = clip(1, 13, 19)
    sheet, layout = sheet_of(source, source), SheetLayout.of(19, 13)
    scale = layout.cell_width // 19
    assert np.array_equal(cell(sheet, layout, 0, 0), source[0].repeat(scale, axis=0).repeat(scale, axis=1))


def test_contact_sheet_of_sixteen_bits_is_that_of_eight() -> None:
    source = clip(1, 16, 240)
    sheet, layout = sheet_of(source.astype(np.uint16) * 257, source), SheetLayout.of(240, 16)
    assert np.array_equal(cell(sheet, layout, 0, 0), source[0])
    assert cell(sheet, layout, 0, 2).max() == 0


def test_contact_sheet_save_writes_a_png(tmp_path: Path) -> None:
    sheet = ContactSheet(1)
    sheet.add(clip(1, 16, 240)[0], clip(1, 16, 240, seed=1)[0])
    sheet.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as stored:
        assert stored.format == "PNG"
        assert np.array_equal(np.asarray(stored), np.asarray(sheet.draw()))
