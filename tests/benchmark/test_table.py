import json
from pathlib import Path

import pytest

from scripts import benchmark_table
from scripts.benchmark_table import fill_marks, markdown
from tests.benchmark.records import make_record
from wan_vae.cli import main
from wan_vae.errors import UserError

ROOT = Path(__file__).parents[2]
EMPTY = "before\n<!-- speed -->\n<!-- /speed -->\nafter\n"


def run_script(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments], program=benchmark_table.app)
    return exit_.value.code or 0


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name, record in (("b", make_record(device="cuda")), ("a", make_record(alone=True))):
        (folder / f"speed_{name}.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "quality.json").write_text("{}", encoding="utf-8")
    (tmp_path / "document.md").write_text(EMPTY, encoding="utf-8")
    return folder


def test_speed_document_shows_the_records_in_benchmarks() -> None:
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    table = markdown(sorted((ROOT / "benchmarks").glob("speed_*.json")))
    assert text == fill_marks(text, table), "run python scripts/benchmark_table.py"


def test_markdown_has_one_row_for_each_dtype(kept: Path) -> None:
    lines = markdown(sorted(kept.glob("speed_*.json"))).splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert lines[2:6] == [
        "| A Machine, 1 thread | tiny, 5 frames of 32x16 | encode | fp32 | 1 |  |  |  |  | not measured |  | 50% |",
        "| A Machine, 1 thread | tiny, 5 frames of 32x16 | encode | bf16 | 0.5 |  |  |  |  | not measured |  | 50% |",
        "| A Machine | tiny, 5 frames of 32x16 | encode | fp32 | 1 | 2 | 2.00 (1.00 to 3.00) | 2.00 (1.00 to 3.00)"
        " | 3.00 (1.50 to 4.00) | 3 | 3 | 50% |",
        "| A Machine | tiny, 5 frames of 32x16 | encode | bf16 | 0.5 | 0.5 | 1.25 (1.00 to 2.00) | 4.00 (4.00 to 7.50)"
        " |  | 3 | 3 | 50% |",
    ]
    assert lines[-2].startswith(
        "- `benchmarks/speed_a.json`, 2026-01-02: wan_vae 0.1.0, commit abc, torch 2.9; medians"
    )
    assert "diffusers 0.35" in lines[-1]


def test_markdown_without_files_is_empty() -> None:
    assert markdown([]) == ""
    assert fill_marks(EMPTY, "") == EMPTY
    assert fill_marks(fill_marks(EMPTY, "| \\1 |\n"), "") == EMPTY


def test_script_checks_and_fills_the_document(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = kept.parent / "document.md"
    options = ("--folder", kept, "--document", document)
    assert run_script(*options, "--check") == 2
    assert "document.md does not show what is in" in capsys.readouterr().err
    assert document.read_text(encoding="utf-8") == EMPTY
    assert run_script(*options) == 0
    assert "| A Machine |" in document.read_text(encoding="utf-8")
    assert run_script(*options, "--check") == 0
    document.write_text("no marks", encoding="utf-8")
    assert run_script(*options) == 2
    assert "lacks <!-- speed --> and <!-- /speed -->" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": [{}]}'])
def test_markdown_of_another_file_raises(text: str, tmp_path: Path) -> None:
    path = tmp_path / "speed_other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"speed_other\.json is not what wan-vae benchmark --json wrote"):
        markdown([path])
