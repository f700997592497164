import csv
from pathlib import Path

import pytest
from PIL import Image

from experiments.residual_blocks.claims import verdicts_of
from experiments.residual_blocks.report import check_marks, filled, rows
from experiments.residual_blocks.study import Study
from experiments.residual_blocks.tests.conftest import DOCUMENT, QUICK, QuickRun, run_script
from wan_vae.config import BLOCK_KINDS
from wan_vae.errors import UserError

LARGEST_PICTURE = 150_000  # bytes


@pytest.mark.slow
def test_the_table_has_every_network(study: Study, quick_run: QuickRun) -> None:
    with (quick_run.out / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows(study)) == 3 * 6 + 1 + 4 + 2 * 2
    for kind in BLOCK_KINDS:
        grid = [row["layers"] for row in table if row["kind"] == kind and row["group"] == "the grid"]
        assert grid == ["9", "15", "21"]
    for row in table:
        assert float(row["psnr_least"]) <= float(row["psnr"]) <= float(row["psnr_most"])
    assert quick_run.out.joinpath("table.md").read_text().count("\n| bottleneck | 21 |") == 2


@pytest.mark.slow
def test_every_claim_has_its_sentence_rule_and_figures(study: Study, quick_run: QuickRun) -> None:
    text = (quick_run.out / "verdicts.md").read_text()
    verdicts = verdicts_of(study)
    assert len(verdicts) == 13
    for one in verdicts:
        assert f"| {one.title} | **{one.outcome}** |" in text
        for part in (one.source, one.translation, one.rule, one.figures):
            assert part in text


@pytest.mark.slow
def test_pictures_are_small_and_wide_enough(quick_run: QuickRun) -> None:
    pictures = list(quick_run.out.glob("*.png"))
    assert len(pictures) == 5
    for path in pictures:
        assert path.stat().st_size < LARGEST_PICTURE
        assert Image.open(path).width == 950


@pytest.mark.slow
def test_the_document_is_filled_in(quick_run: QuickRun) -> None:
    text = quick_run.document.read_text()
    table, verdicts = ((quick_run.out / f"{name}.md").read_text() for name in ("table", "verdicts"))
    assert text == (
        f"before\n<!-- verdicts -->\n\n{verdicts}\n<!-- end of verdicts -->\nbetween\n"
        f"<!-- table -->\n\n{table}\n<!-- end of table -->\nafter\n"
    )


def test_filling_in_twice_changes_nothing() -> None:
    parts = {"table": r"a \1 b", "verdicts": "c"}
    once = filled(DOCUMENT, parts)
    assert r"a \1 b" in once
    assert filled(once, parts) == once


def test_a_document_without_a_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "document.md"
    with pytest.raises(UserError, match="There is no document"):
        check_marks(path, ["table"])
    path.write_text("<!-- table -->")
    with pytest.raises(UserError, match="it lacks <!-- table --> and <!-- end of table -->"):
        check_marks(path, ["table"])


@pytest.mark.slow
def test_results_are_not_replaced_unasked(quick_run: QuickRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(QUICK, "--out", quick_run.out, "--cache", quick_run.cache) == 2
    assert "results.csv exists; pass --overwrite" in capsys.readouterr().err
