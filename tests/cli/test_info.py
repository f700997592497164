"""`wan-vae info`: plans, and files that are nothing of the kind."""

from pathlib import Path

import pytest

from tests.cli.running import run
from tests.cli.test_errors import assert_one_sentence


def test_plan_prints_a_table_in_gib(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "info", "nano", "--plan", "3840x2160x17", "--memory", "5GiB", "--device", "cpu")
    lines = outcome.out.splitlines()
    assert lines[1].split() == ["size", "3840x2160"]
    assert lines[3].split() == ["memory", "latents", "a", "pass", "more", "operations", "pictures"]
    assert [line.split("  ")[0] for line in lines[4:]] == [
        "encode, clip",
        "encode, stream",
        "decode, clip",
        "decode, stream",
    ]
    assert all(" GiB " in line for line in lines[4:])
    assert all("whole pictures" in line for line in lines[4:6])
    assert all("tiles" in line for line in lines[6:])
    assert "0.0 %" not in outcome.out


def test_plan_of_what_does_not_fit_names_the_smallest_budget_in_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--memory", "4GiB", "--device", "cpu", "--dtype", "fp32")
    outcome = run(capsys, "info", "nano", "--plan", "3840x2160x17", *options)
    *others, decode_stream = outcome.out.splitlines()[4:]
    assert len(others) == 3
    assert all(" GiB " in line and "tiles" in line for line in others)
    assert decode_stream.startswith("decode, stream")
    assert "too little to decode this clip" in decode_stream
    assert "0.0 %" not in outcome.out


@pytest.mark.parametrize("options", [("--memory", "abc"), ("--device", "cpu"), ("--dtype", "bf16")])
def test_options_of_plans_without_a_plan_are_refused(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, "info", "nano", *options)
    assert_one_sentence(outcome, f"{options[0]} is {options[1]}, which is for --plan alone")


@pytest.mark.parametrize(("size", "memory", "words"), [("64x48x9", "lots", "'lots'"), ("0x0x0", "1GiB", "'0x0x0'")])
def test_plan_of_impossible_options_is_refused(
    size: str, memory: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, "info", "nano", "--plan", size, "--memory", memory)
    assert_one_sentence(outcome, words)
    assert outcome.out == ""


def test_plan_takes_the_order_of_size(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "info", "nano", "--plan", "64x32x5", "--json").result()
    assert (result["width"], result["height"], result["frames"]) == (64, 32, 5)


def test_plan_of_a_clip_has_its_padded_size(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "info", "nano", "--plan", clip, "--json").result()
    assert (result["width"], result["height"], result["frames"]) == (24, 16, 9)
    assert result["decode_stream_peak"] > 0


def test_plan_with_a_clip_for_the_checkpoint_says_how_to_write_it(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, "info", clip, "--plan", "64x64x5")
    assert_one_sentence(outcome, "clip.mkv is no checkpoint", f"wan-vae info nano --plan {clip}")


def test_plan_of_no_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_sentence(run(capsys, "info", "--plan", "720x1280"), "'720x1280'", "WIDTHxHEIGHTxFRAMES")


def test_file_of_no_kind_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = tmp_path / "note.txt"
    note.write_text("a note", encoding="utf-8")
    assert_one_sentence(run(capsys, "info", note), "note.txt is no checkpoint, no latents file, and no clip")
