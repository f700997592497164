import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_vae.report.plots import HEIGHT, WIDTH, bars, line_plot, nice_ticks, shown_value


def points(text: str) -> np.ndarray:
    return np.array([pair.split(",") for pair in text.split()], dtype=float)


@given(low=st.floats(-1e4, 1e4), span=st.floats(0, 1e3))
def test_nice_ticks_enclose_the_values_and_are_few(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert ticks[0] <= low + 1e-9 * abs(low)
    assert ticks[-1] >= low + span - 1e-9 * abs(low + span)
    assert 2 <= len(ticks) <= 8
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-3)


def test_line_plot_places_values_between_its_ticks() -> None:
    plot = line_plot("PSNR", "dB", {"nano": [20.0, 30.0, 25.0, math.inf]})
    assert plot.ticks[0] == (100, "20")
    assert plot.ticks[-1] == (0, "30")
    assert np.allclose(
        points(plot.lines["nano"]), [(0, HEIGHT), (WIDTH / 3, 0), (WIDTH / 1.5, HEIGHT / 2), (WIDTH, 0)], atol=0.1
    )
    assert plot.summary == "PSNR of nano, by frame: from 20.00 dB in frame 0 to identical in frame 3"


def test_line_plot_of_many_frames_keeps_the_single_bad_one() -> None:
    values = [30.0] * 50_000
    values[31_234] = 10.0
    drawn = points(line_plot("PSNR", "dB", {"nano": values}).lines["nano"])
    assert len(drawn) < 3000
    assert drawn[drawn[:, 1].argmax()] == pytest.approx((WIDTH * 31_234 / 49_999, HEIGHT), abs=0.1)


def test_line_plot_of_one_frame_is_a_line() -> None:
    assert len(points(line_plot("SSIM", "", {"nano": [0.5]}).lines["nano"])) == 2


def test_line_plot_of_identical_frames_is_drawn() -> None:
    assert (points(line_plot("PSNR", "dB", {"nano": [math.inf] * 3}).lines["nano"])[:, 1] == 0).all()


def test_bars_rise_with_the_counts() -> None:
    assert bars([0, 4, 2]) == "0,100 0,100 1,100 1,0 2,0 2,50 3,50 3,100"
    assert bars([0, 0]) == "0,100 0,100 1,100 1,100 2,100 2,100"


def test_shown_value_has_its_unit() -> None:
    assert (shown_value(26.314, "dB"), shown_value(0.5, ""), shown_value(math.inf, "dB")) == (
        "26.31 dB",
        "0.5000",
        "identical",
    )
