"""Clips of another shape than the size they are scaled to."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.io.sources import Array, encode, read_all, rgb_frames
from wan_vae.errors import ClipError, UserError
from wan_vae.io import open_clip
from wan_vae.io.fit import Fit, Scaling, scaling

sides = st.integers(1, 3000)
aspects = st.fractions(Fraction(1, 3), 3, max_denominator=50)


def disk(width: int, height: int, pixel_aspect: Fraction = Fraction(1)) -> Array:
    """A white disk in the middle of black, (height, width, 3), round when displayed with such pixels."""
    rows, columns = np.mgrid[:height, :width]
    x, y = (columns - (width - 1) / 2) * float(pixel_aspect), rows - (height - 1) / 2
    inside = np.hypot(x, y) < 0.4 * min(width * pixel_aspect, height)
    return np.repeat(np.uint8(255 * inside)[..., None], 3, axis=2)


def extent(picture: Array) -> tuple[int, int]:
    """Columns and rows of what is bright."""
    bright = picture[..., 0] > 127
    return int(bright.any(axis=0).sum()), int(bright.any(axis=1).sum())


@settings(max_examples=200)
@given(width=sides, height=sides, aspect=aspects, size=st.tuples(sides, sides), fit=st.sampled_from(["crop", "pad"]))
def test_crop_and_pad_keep_the_shape_that_is_displayed(
    width: int, height: int, aspect: Fraction, size: tuple[int, int], fit: Fit
) -> None:
    try:
        how = scaling(width, height, aspect, size, fit)
    except ClipError:
        assert fit == "crop"
        return
    (wide, high), displayed = how.scaled, aspect * Fraction(width, height)
    assert (how.size, how.pixel_aspect) == (size, 1)
    # One side fits exactly, and the other is the nearest number of pixels.
    assert wide == size[0] or high == size[1]
    assert (
        abs(wide - high * displayed) <= Fraction(1, 2)
        or abs(high - wide / displayed) <= Fraction(1, 2)
        or 1 in (wide, high)
    )
    covers, fits = wide >= size[0] and high >= size[1], wide <= size[0] and high <= size[1]
    assert covers if fit == "crop" else fits


@given(scaled=st.tuples(st.integers(1, 9), st.integers(1, 9)), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_place_keeps_the_middle_and_puts_odd_remainders_to_the_bottom_and_right(
    scaled: tuple[int, int], size: tuple[int, int]
) -> None:
    picture = np.arange(1, 1 + scaled[0] * scaled[1] * 3, dtype=np.uint16).reshape(scaled[1], scaled[0], 3)
    placed = Scaling(scaled, size, Fraction(1)).place(picture)
    assert placed.shape == (size[1], size[0], 3)
    rows, columns = np.nonzero(placed[..., 0])
    for axis, found in ((1, columns), (0, rows)):
        before, after = found.min(), placed.shape[axis] - 1 - found.max()
        assert after - before in (0, 1)
        kept = np.unique(found)
        assert len(kept) == min(picture.shape[axis], placed.shape[axis])
    first = picture[max(0, scaled[1] - size[1]) // 2, max(0, scaled[0] - size[0]) // 2]
    assert (placed[rows.min(), columns.min()] == first).all()


@settings(max_examples=200)
@given(width=sides, height=sides, aspect=aspects, side=sides, gives_width=st.booleans())
def test_a_side_that_is_not_given_is_even_and_keeps_the_shape(
    width: int, height: int, aspect: Fraction, side: int, gives_width: bool
) -> None:
    size = scaling(width, height, aspect, (side, None) if gives_width else (None, side), None).size
    displayed = aspect * Fraction(width, height)
    exact = side / displayed if gives_width else side * displayed
    found = size[1] if gives_width else size[0]
    assert side in size
    assert found % 2 == 0
    assert abs(found - exact) <= 1 or found == 2


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(4, 3)])
@pytest.mark.parametrize(
    ("fit", "size"), [("crop", (40, 60)), ("pad", (40, 60)), ("pad", (61, 32)), ("crop", (91, 40))]
)
def test_a_round_disk_stays_round_in_square_pixels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, aspect: Fraction, fit: str, size: tuple[int, int]
) -> None:
    frames = rgb_frames(disk(96, 80, aspect)[None], "rgb24")
    path = encode(tmp_path / "a.mkv", frames, codec="libx264rgb", options={"qp": "0"}, pixel_aspect=aspect)
    info, pictures = read_all(path, size=size, fit=fit)
    assert (info.width, info.height, info.pixel_aspect) == (*size, 1)
    columns, rows = extent(pictures[0])
    # What is cropped cuts the disk at one axis; what is left of that axis is the full side.
    assert abs(columns - rows) <= 1 if fit == "pad" else columns == size[0] or rows == size[1]
    assert not caplog.records


def test_pad_of_a_clip_with_alpha_is_transparent_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 20, 4), 255, np.uint8)).save(tmp_path / "a.png")
    for alpha, outside in ((True, [0, 0, 0, 0]), (False, [0, 0, 0])):
        _, pictures = read_all(tmp_path / "a.png", size=(20, 15), fit="pad", alpha=alpha)
        assert (pictures[0, :2] == outside).all()
        assert (pictures[0, 2:12] == 255).all()
        assert (pictures[0, 12:] == outside).all()


def test_pad_of_deep_pictures_keeps_their_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 20), 40000, np.uint16)).save(tmp_path / "a.png")
    _, pictures = read_all(tmp_path / "a.png", size=(20, 12), fit="pad")
    assert pictures.dtype == np.uint16
    assert (pictures[0, [0, 1, 10, 11], 0, 0] == [0, 40000, 40000, 0]).all()


@pytest.mark.parametrize(
    ("size", "fit", "noticed"),
    [
        ((256, 144), None, True),
        ((256, 144), "stretch", False),
        ((256, 192), None, False),
        ((321, 240), None, False),
        ((256, None), None, False),
    ],
)
def test_stretching_is_noticed_where_pixels_are_not_square(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: Any, fit: Any, noticed: bool
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    with open_clip(tmp_path / "a.png", size=size, fit=fit) as clip:
        displayed = clip.info.pixel_aspect * Fraction(clip.info.width, clip.info.height)
    assert abs(displayed - Fraction(4, 3)) < Fraction(1, 100)
    assert ("stretched from 64x48 to 256x144, with pixels 0.75 times as wide as high" in caplog.text) == noticed
    assert bool(caplog.records) == noticed


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fit": "fill", "size": (8, 8)}, UserError, "fit is 'fill'; it must be stretch, crop or pad"),
        ({"fit": "crop"}, UserError, "fit is crop, but there is no size to fit to"),
        ({"size": (None, None)}, UserError, r"size is \(None, None\); it must be"),
        ({"size": (None, 0)}, ClipError, "size x0 is not possible"),
        ({"size": (None, 200)}, ClipError, "would get 400000x200 pixels"),
        ({"size": (200, 200), "fit": "crop"}, ClipError, "4000x2 is too far from the shape of 200x200 to be cropped"),
    ],
)
def test_impossible_fits_are_refused(tmp_path: Path, options: Any, error: type[UserError], message: str) -> None:
    Image.new("RGB", (4000, 2)).save(tmp_path / "a.png")
    with pytest.raises(error, match=message) as raised:
        open_clip(tmp_path / "a.png", **options)
    assert str(raised.value).endswith(".")
