"""The page in a real browser, without a network: what is seen, keys, clicks, and that nothing is asked of anybody.

Needs Playwright and Debian's Chromium: `pip install playwright` and `apt-get install chromium`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.report.test_page import NAME, written

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

pytestmark = pytest.mark.slow

FRAMES, HEIGHT, WIDTH = 8, 48, 64
MADE = 3  # levels that the reconstruction is brighter
WORST = 5  # a frame


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on frames whose level tells their number, with a bright pixel in the lower right corner."""
    source = np.empty((FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    source[:] = 20 * np.arange(1, FRAMES + 1)[:, None, None, None]
    source[:, -6:, -8:] = 255
    made = source - np.uint8(MADE)
    made[WORST] -= 9
    path = tmp_path_factory.mktemp("browser") / "page.html"
    written(path, source, made, title=NAME)
    return path


@contextmanager
def opened(browser: "Browser", path: Path) -> "Iterator[Tab]":
    """Open a page at 1280 pixels; afterwards, nothing may have gone wrong or been asked for."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page, faults = context.new_page(), []
    # The browser has advice for these tests, which read many pixels.
    page.on("console", lambda message: "willReadFrequently" in message.text or faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append("a dialog"), dialog.dismiss()))
    page.on("request", lambda request: request.url.partition("#")[0] == path.as_uri() or faults.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#stage[data-frame]")
    yield page
    context.close()
    assert faults == []


@pytest.fixture
def tab(browser: "Browser", path: Path) -> "Iterator[Tab]":
    with opened(browser, path) as page:
        yield page


def pixel(tab: "Tab", canvas: int, x: float, y: float) -> int:
    """Return the green level of a canvas at a place from 0 to 1."""
    return tab.evaluate(
        """([index, x, y]) => {
             const canvas = document.querySelectorAll("#stage canvas")[index];
             return canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data[1];
           }""",
        [canvas, x, y],
    )


def shown(tab: "Tab") -> list[int]:
    """Return the number of the frame that each half of the side-by-side view shows, by its pixels."""
    levels = [pixel(tab, canvas, 0.3, 0.3) for canvas in (0, 1)]
    lost = MADE + 9 * (levels[0] == 20 * (WORST + 1))
    return [levels[0] // 20 - 1, (levels[1] + lost) // 20 - 1]


def wait_for(tab: "Tab", frame: int) -> None:
    tab.wait_for_selector(f'#stage[data-frame="{frame}"]')


def test_both_pictures_show_the_frame_that_keys_lead_to(tab: "Tab") -> None:
    assert shown(tab) == [0, 0]
    for key, frame in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 7), ("Home", 0), ("w", WORST)):
        tab.keyboard.press(key)
        wait_for(tab, frame)
        assert shown(tab) == [frame, frame]
    assert f"Frame {WORST} of 0 to 7, 0.40 s: PSNR 26." in tab.inner_text("#now")
    assert f"Frame {WORST}" in tab.get_attribute("#stage canvas", "aria-label")


def test_picture_that_comes_late_does_not_replace_a_later_frame(tab: "Tab") -> None:
    tab.evaluate(
        """() => {
             const decode = window.createImageBitmap;
             let wait = 300;
             window.createImageBitmap = async (...given) => {
               const own = wait;
               wait = 0;
               await new Promise((done) => setTimeout(done, own));
               return decode.apply(window, given);
             };
           }"""
    )
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowLeft")
    wait_for(tab, 6)
    tab.wait_for_timeout(500)
    assert tab.get_attribute("#stage", "data-frame") == "6"
    assert shown(tab) == [6, 6]


def test_slider_moves_the_edge_between_the_pictures(tab: "Tab") -> None:
    tab.click("text=Slider")
    tab.wait_for_selector("#stage.wipe canvas")
    wait_for(tab, 0)
    tab.wait_for_selector("#stage figcaption:has-text('|')")
    assert [pixel(tab, 0, x, 0.3) for x in (0.1, 0.4, 0.6)] == [20, 20, 20 - MADE]
    tab.evaluate("wipe.value = 20; wipe.dispatchEvent(new Event('input'))")
    assert [pixel(tab, 0, x, 0.3) for x in (0.1, 0.4, 0.6)] == [20, 20 - MADE, 20 - MADE]
    box = tab.locator("#stage canvas").bounding_box()
    tab.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 50)
    tab.mouse.up()
    assert [pixel(tab, 0, x, 0.3) for x in (0.1, 0.6, 0.9)] == [20, 20, 20 - MADE]
    tab.focus("#wipe")
    before = tab.input_value("#wipe")
    tab.keyboard.press("ArrowLeft")
    assert float(tab.input_value("#wipe")) < float(before)
    assert tab.get_attribute("#stage", "data-frame") == "0"


def test_click_on_a_plot_leads_to_the_frame(tab: "Tab") -> None:
    lines = tab.locator(".lines").first
    box = lines.bounding_box()
    lines.click(position={"x": box["width"] * 3 / 7 + 2, "y": 40})
    wait_for(tab, 3)
    assert shown(tab) == [3, 3]
    assert float(tab.locator(".cursor").first.get_attribute("x1")) == pytest.approx(3000 / 7)


def test_links_lead_to_the_worst_frame(tab: "Tab", path: Path) -> None:
    link = tab.locator("a[data-frame]").first
    assert link.get_attribute("data-frame") == str(WORST)
    link.click()
    wait_for(tab, WORST)
    assert shown(tab) == [WORST, WORST]
    tab.goto(f"{path.as_uri()}#frame=6")
    wait_for(tab, 6)


def test_playing_keeps_both_pictures_on_one_frame(tab: "Tab") -> None:
    tab.keyboard.press("Space")
    seen = set()
    for _ in range(60):
        levels = tab.evaluate(
            """() => new Promise((done) => requestAnimationFrame(() => done(
                 [...document.querySelectorAll("#stage canvas")]
                   .map((canvas) => canvas.getContext("2d").getImageData(30, 30, 1, 1).data[1]))))"""
        )
        lost = MADE + 9 * (levels[0] == 20 * (WORST + 1))
        assert levels[0] - levels[1] == lost
        seen.add(levels[0])
    assert len(seen) > 2
    tab.keyboard.press("Space")
    assert tab.get_attribute("#play", "aria-pressed") == "false"
    stopped = tab.get_attribute("#stage", "data-frame")
    tab.wait_for_timeout(300)
    assert tab.get_attribute("#stage", "data-frame") == stopped


def test_zoom_follows_the_pointer_in_both_pictures(tab: "Tab") -> None:
    box = tab.locator("#stage canvas").first.bounding_box()
    corner = (box["x"] + box["width"] - 2, box["y"] + box["height"] - 2)
    assert pixel(tab, 0, 0.6, 0.6) == 20
    tab.mouse.move(*corner)
    for _ in range(16):
        tab.mouse.wheel(0, -100)
    tab.wait_for_selector("#zoom:text-is('16x')")
    assert [pixel(tab, canvas, 0.6, 0.6) for canvas in (0, 1)] == [255, 255 - MADE]
    tab.mouse.move(box["x"] + 2, box["y"] + 2)
    assert [pixel(tab, canvas, 0.6, 0.6) for canvas in (0, 1)] == [20, 20 - MADE]
    tab.keyboard.press("0")
    assert tab.inner_text("#zoom") == "1x"


def test_error_view_shows_the_error_and_all_shows_three(tab: "Tab") -> None:
    tab.keyboard.press("3")
    tab.wait_for_selector("#stage.error")
    tab.wait_for_selector("#stage figcaption:text-is('Error')")
    dark = pixel(tab, 0, 0.3, 0.3)
    tab.keyboard.press("w")
    wait_for(tab, WORST)
    assert pixel(tab, 0, 0.3, 0.3) > dark
    assert tab.is_visible("#scale")
    tab.keyboard.press("4")
    tab.wait_for_selector("#stage figure:nth-child(3):last-child canvas")
    assert tab.locator("#stage canvas").count() == 3


def test_several_reconstructions_are_compared_with_each_other(browser: "Browser", tmp_path: Path) -> None:
    source = np.full((2, HEIGHT, WIDTH, 3), 100, dtype=np.uint8)
    written(tmp_path / "page.html", source, source - np.uint8(10), source - np.uint8(30), names=("a", "b"))
    with opened(browser, tmp_path / "page.html") as tab:
        assert tab.locator("#stage canvas").count() == 5  # all at first
        assert [pixel(tab, canvas, 0.5, 0.5) for canvas in (0, 1, 2)] == [100, 90, 70]
        tab.keyboard.press("2")
        tab.select_option("#left", label="a")
        tab.select_option("#right", label="b")
        tab.wait_for_selector("#stage figcaption:text-matches('^a .* [|] b ')")
        assert [pixel(tab, 0, x, 0.5) for x in (0.4, 0.6)] == [90, 70]


def test_latents_are_those_of_the_frame(browser: "Browser", tmp_path: Path) -> None:
    levels = torch.tensor([-2.0, 0.0, 2.0])
    latents = torch.stack([levels, -levels])[None, :, :, None, None].expand(-1, -1, -1, 4, 6)
    source = np.full((9, HEIGHT, WIDTH, 3), 100, dtype=np.uint8)
    written(tmp_path / "page.html", source, source - np.uint8(10), latents=latents)
    read = """[...document.querySelectorAll("[data-latents]")]
                .map((canvas) => canvas.getContext("2d").getImageData(3, 2, 1, 1).data[0])"""
    with opened(browser, tmp_path / "page.html") as tab:
        for frame, level in enumerate([42, 128, 128, 128, 128, 212, 212, 212, 212]):
            wait_for(tab, frame)
            assert tab.evaluate(read) == pytest.approx([level, 255 - level], abs=1)
            tab.keyboard.press("ArrowRight")


def test_names_from_files_are_text(tab: "Tab") -> None:
    assert tab.title().startswith("<img src=x onerror=alert(1)>")
    assert tab.inner_text("h1").startswith("<img src=x onerror=alert(1)>")
    assert tab.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_width_in_light_and_dark(browser: "Browser", path: Path, width: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("#stage[data-frame]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back, text = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    levels = [int(color.removeprefix("rgb(").partition(",")[0]) for color in (back, text)]
    assert (levels[0] > levels[1]) == (scheme == "light")
    context.close()


def test_every_control_has_a_name_and_every_picture_a_description(tab: "Tab") -> None:
    nameless = tab.evaluate(
        """[...document.querySelectorAll("button, input, select, [role=img]")].filter((one) =>
             !(one.getAttribute("aria-label") || one.textContent.trim() || one.closest("label")))
             .map((one) => one.outerHTML)"""
    )
    assert nameless == []
