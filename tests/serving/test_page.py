"""The page for people: a clip goes in, and its report comes out."""

import base64
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the server's packages are missing: pip install 'wan-vae[serve]'")

import requests

from tests.serving.running import serving, small_vae
from wan_vae import reconstruct_file
from wan_vae.io import write_clip
from wan_vae.report.page import style_and_script

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

FRAMES = 9


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(small_vae(), frames=50) as address:
        yield address


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("page") / "a clip & more.mkv", FRAMES)


def written(path: Path, frames: int) -> Path:
    video = torch.rand(1, 3, frames, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_clip(path, video, fps=12, lossless=True)
    return path


def test_page_names_the_model_and_its_policy_allows_its_own_code_and_the_reports(address: str) -> None:
    answer = requests.get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<h1>small</h1>" in answer.text
    policy = answer.headers["content-security-policy"]
    for tag, shared in zip(("style", "script"), style_and_script(), strict=True):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        sources = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (inline, shared)]
        assert f"{tag}-src 'sha256-{sources[0]}' 'sha256-{sources[1]}';" in policy


def test_report_is_progress_and_then_the_page_of_reconstruct(address: str, clip: Path, tmp_path: Path) -> None:
    answer = requests.post(f"{address}/report", clip.read_bytes(), params={"name": clip.name})
    lines, _, page = answer.text.partition("\n\n")
    assert lines.split("\n") == [f"{done} {FRAMES}" for done in range(FRAMES + 1)]
    reconstruct_file(clip, tmp_path / "out.mkv", small_vae(), report=tmp_path / "own.html")
    own = (tmp_path / "own.html").read_text(encoding="utf-8")
    pictures = r'<script type="text/plain" id="(.*?)">(.*?)</script>'
    assert re.findall(pictures, page) == re.findall(pictures, own)
    assert len(re.findall(pictures, page)) > 3 * FRAMES
    assert "a clip &amp; more.mkv" in page


def test_report_of_what_is_no_clip_is_refused(address: str) -> None:
    answer = requests.post(f"{address}/report", b"no clip at all")
    assert answer.status_code == 422
    assert "detail" in answer.json()


def test_report_of_too_many_frames_is_refused(address: str, tmp_path: Path) -> None:
    answer = requests.post(f"{address}/report", written(tmp_path / "long.mkv", 51).read_bytes())
    assert (answer.status_code, answer.json()["detail"]) == (413, "51 frames are too many; up to 50 are taken.")


def test_report_of_a_clip_that_is_damaged_further_on_ends_with_the_error(
    address: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wan_vae.errors import ClipError
    from wan_vae.serving import work

    reconstruct = work.reconstruct_clip

    def failing(*given: Any) -> Iterator[Any]:
        for index, pair in enumerate(reconstruct(*given)):
            if index == 3:
                raise ClipError("The clip is damaged.")
            yield pair

    monkeypatch.setattr(work, "reconstruct_clip", failing)
    answer = requests.post(f"{address}/report", clip.read_bytes())
    assert answer.text.endswith("\n3 9\nerror: The clip is damaged.\n")
    assert "\n\n" not in answer.text


def test_report_needs_the_token_and_the_page_asks_for_it(clip: Path) -> None:
    with serving(small_vae(), token="secret") as address:
        page = requests.get(address)
        assert (page.status_code, 'id="token"' in page.text) == (200, True)
        assert requests.post(f"{address}/report", clip.read_bytes()).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert requests.post(f"{address}/report", clip.read_bytes(), headers=headers).status_code == 200


@pytest.fixture
def tab(browser: "Browser", address: str) -> "Iterator[Tab]":
    """The page at 1280 pixels; afterwards, nothing may have gone wrong or been asked of other servers."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    own = (address, f"blob:{address}", "data:")
    page.on("request", lambda request: request.url.startswith(own) or faults.append(request.url))
    page.goto(address)
    yield page
    context.close()
    assert [fault for fault in faults if "status of 422" not in fault and "willReadFrequently" not in fault] == []


@pytest.mark.slow
def test_a_chosen_clip_gives_a_report_that_works(tab: "Tab", clip: Path) -> None:
    tab.set_input_files("#clip", clip)
    tab.wait_for_selector("#result:not([hidden])")
    assert tab.inner_text("#state") == "The report of a clip & more.mkv is below."
    report = tab.frame_locator("#report")
    report.locator("#stage[data-frame='0']").wait_for()
    assert report.locator("#stage canvas").count() == 2
    report.locator("#forward").click()
    report.locator("#stage[data-frame='1']").wait_for()
    report.locator("[data-view=wipe]").click()
    report.locator("#stage.wipe canvas").wait_for()
    with tab.expect_download() as download:
        tab.click("#save")
    assert download.value.suggested_filename == "a clip & more.html"
    with tab.context.expect_page() as opened:
        tab.click("#open")
    opened.value.wait_for_selector("#stage[data-frame]")


@pytest.mark.slow
def test_a_dropped_clip_shows_progress_frame_by_frame(tab: "Tab", clip: Path) -> None:
    tab.evaluate(
        """() => {
             window.said = [];
             new MutationObserver(() => said.push(state.textContent)).observe(state, { childList: true });
           }"""
    )
    tab.evaluate(
        """([name, base64]) => {
             const data = new DataTransfer();
             const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
             data.items.add(new File([bytes], name));
             const event = { dataTransfer: data, bubbles: true, cancelable: true };
             drop.dispatchEvent(new DragEvent("dragover", event));
             drop.dispatchEvent(new DragEvent("drop", event));
           }""",
        [clip.name, base64.b64encode(clip.read_bytes()).decode()],
    )
    tab.wait_for_selector("#result:not([hidden])")
    said = tab.evaluate("said")
    assert said[0] == f"Sending {clip.name}"
    assert "Waiting for the model" in said
    assert f"Frame {FRAMES} of {FRAMES}" in said
    assert tab.is_hidden("#work")


@pytest.mark.slow
def test_what_is_no_clip_is_said_and_another_may_follow(tab: "Tab", clip: Path, tmp_path: Path) -> None:
    (tmp_path / "note.mp4").write_text("no clip at all")
    tab.set_input_files("#clip", tmp_path / "note.mp4")
    tab.wait_for_selector("#state.failed")
    assert "no clip" in tab.inner_text("#state") or "video" in tab.inner_text("#state")
    tab.set_input_files("#clip", clip)
    tab.wait_for_selector("#result:not([hidden])")


@pytest.mark.slow
def test_cancel_ends_the_work(tab: "Tab", address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wan_vae.serving import work

    reconstruct = work.reconstruct_clip

    def slow(*given: Any) -> Iterator[Any]:
        for pair in reconstruct(*given):
            yield pair
            time.sleep(0.05)

    monkeypatch.setattr(work, "reconstruct_clip", slow)
    tab.set_input_files("#clip", written(tmp_path / "long.mkv", 50))
    tab.wait_for_selector("#state:has-text('Frame')")
    tab.click("#cancel")
    assert tab.inner_text("#state") == "Cancelled."
    while requests.get(f"{address}/healthz").json()["admitted"]:
        tab.wait_for_timeout(20)
    assert tab.is_hidden("#result")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_width(browser: "Browser", address: str, clip: Path, width: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.set_input_files("#clip", clip)
    page.wait_for_selector("#result:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
