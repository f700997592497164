"""Notices, and what commands show of their work."""

import fcntl
import io
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.cli.test_errors import assert_one_sentence
from tests.io.sources import encode, rgb_frames, smooth_pictures
from wan_vae.cli import common, messages

LOGGER = logging.getLogger("wan_vae")


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """A clip whose audio a latents file does not hold."""
    return encode(tmp_path / "loud.mkv", rgb_frames(smooth_pictures(2, 16, 24)), audio_codec="pcm_s16le")


@pytest.mark.parametrize(
    ("option", "notice", "activity"), [(None, True, False), ("-q", False, False), ("-v", True, True)]
)
def test_verbosity_options_choose_what_is_printed(
    option: str | None,
    notice: bool,
    activity: bool,
    loud: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("encode", loud, tmp_path / "l.safetensors", "--checkpoint", checkpoint, *([option] if option else []))
    outcome = run(capsys, *arguments)
    assert outcome.code == 0
    assert outcome.err.startswith(f"wan-vae: {loud} has audio") is notice
    assert (f"wan-vae: loading {checkpoint}\n" in outcome.err) is activity
    assert "output" in outcome.out
    assert (LOGGER.handlers, LOGGER.level) == ([], logging.NOTSET)


def test_quiet_and_verbose_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_sentence(run(capsys, "info", "-q", "-v"), "--quiet and --verbose")


def lines_until(capsys: pytest.CaptureFixture[str], start: str) -> list[str]:
    """Return what standard error gets until a line begins so; a loaded machine may take its time over it."""
    until, printed = time.monotonic() + 30, ""
    while not any(line.startswith(start) for line in printed.splitlines()):
        assert time.monotonic() < until, printed
        time.sleep(0.01)
        printed += capsys.readouterr().err
    return printed.splitlines()


def test_progress_without_a_terminal_prints_lines_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "INTERVAL", 0.02)
    with messages.shown(quiet=False, verbose=False), common.Progress("encoding") as progress:
        LOGGER.info("Compiling the CPU kernels")
        lines = lines_until(capsys, "wan-vae: compiling")
        progress(0, 490)
        lines += lines_until(capsys, "wan-vae: encoding: 0 of")
        progress(70, 490)
        lines += lines_until(capsys, "wan-vae: encoding: 70 of")
    assert lines[0] == "wan-vae: compiling the CPU kernels [00:00]"
    assert "wan-vae: encoding: 0 of 490 frames, ? left" in lines
    assert lines[-1].startswith("wan-vae: encoding: 70 of 490 frames, 00:0")
    time.sleep(0.1)  # for a line that was being printed
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "INTERVAL", 0.02)
    with messages.shown(quiet=True, verbose=False), common.Progress("encoding") as progress:
        progress(0, 9)
        LOGGER.warning("A notice")
        time.sleep(0.1)
        progress(9, 9)
    assert capsys.readouterr().err == ""


def test_bar_begins_where_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with messages.Bar(unit="step") as bar:
        bar.begin("training", 41, initial=12)
        bar.update(3)
        assert str(bar).startswith("training: 15 of 41 steps")


def test_terminal_shows_what_is_done_and_clears_the_bar_before_an_error(loud: Path, checkpoint: Path) -> None:
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    command = ["reconstruct", loud, loud.with_name("out.mkv"), "--checkpoint", checkpoint, "--memory", "1KiB"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wan_vae", *map(str, command)],
        stderr=terminal,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(main, 2**16)
        except OSError:  # the process has closed its end
            break
    os.close(main)
    assert process.wait() == 2
    text = shown.decode()
    assert f"loading {checkpoint}"[:60] in text
    assert "reconstructing:   0%" in text
    assert text.rstrip().rpartition("\r")[2].startswith("wan-vae: 1.00KiB of memory is too little")
