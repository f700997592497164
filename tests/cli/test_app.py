"""Help, and what is said of command lines that are wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import wan_vae
from tests.cli.running import run
from tests.cli.test_errors import assert_one_sentence
from wan_vae.cli.app import app

COMMANDS = [command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_at_80_columns_cuts_no_summary(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = run(capsys, option)
    assert outcome.code == 0
    assert "..." not in outcome.out.partition("Commands:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples_that_name_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, command, "-h")
    assert outcome.code == 0
    assert f"wan-vae {command} " in outcome.out.partition("Examples:")[2]
    for option in ("-q, --quiet", "-v, --verbose"):
        assert option in outcome.out


def test_help_uses_the_width_of_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []
    for columns in ("80", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        text = run(capsys, "encode", "-h").out.partition("Examples:")[0]
        widths.append(max(len(line) for line in text.splitlines()))
    assert widths[0] <= 80 < widths[1] <= 120


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version_options_print_the_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, option).out == f"{wan_vae.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("reconstruc",), "wan-vae: No such command 'reconstruc'. Did you mean 'reconstruct'?\n"),
        (("reconstruct", "--side-by-sid"), "wan-vae: No such option: --side-by-sid. Did you mean --side-by-side?\n"),
        (("encode", "--zzz"), "wan-vae: No such option: --zzz; see wan-vae encode --help.\n"),
        (
            ("encode", "a.mp4", "b.pt", "--dtype", "fp8"),
            "wan-vae: Invalid value for '--dtype': 'fp8' is none of auto, fp32, tf32, bf16, fp16.\n",
        ),
    ],
)
def test_wrong_word_prints_what_was_meant(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, *arguments)
    assert (outcome.code, outcome.err) == (2, sentence)


def test_wrong_choice_prints_no_class_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "encode", "a.mp4", "b.pt", "--fit", "fill")
    assert_one_sentence(outcome, "fill", "stretch")
    assert "Value error" not in outcome.err


def test_missing_argument_prints_the_usage_and_where_help_is(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "reconstruct")
    assert_one_sentence(outcome, "Missing argument 'CLIP'", "wan-vae reconstruct [OPTIONS] CLIP", "reconstruct --help")


def test_missing_choice_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "convert", "nano", "out.safetensors")
    assert_one_sentence(outcome, "Missing option '--layout'. Choose from: wan, diffusers; the usage is")


def test_completion_names_the_commands() -> None:
    environment = {"_WAN_VAE_COMPLETE": "complete_bash", "COMP_WORDS": "wan-vae rec", "COMP_CWORD": "1"}
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-m", "wan_vae"],
        env={**os.environ, **environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split() == ["reconstruct"], ended.stderr
