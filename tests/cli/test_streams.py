"""Standard streams that are closed, full or in another encoding, and short limits of the system."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import read_clip, run

ROOT = Path(__file__).parents[2]


def start(*arguments: object, python: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WAN_VAE_BUILD_KERNELS": "0", **options.pop("env", {})}
    command = [sys.executable, *python, "-m", "wan_vae", *map(str, arguments)]
    return subprocess.run(command, env=env, timeout=120, **{"capture_output": True, **options})


def closed(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


def test_commands_with_closed_streams_do_their_work(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, out = tmp_path / "a.safetensors", tmp_path / "a.mkv"
    options = {"capture_output": False, "preexec_fn": closed(0, 1, 2)}
    assert start("encode", clip, latents, "--checkpoint", checkpoint, **options).returncode == 0
    assert run(capsys, "info", latents).code == 0
    assert start("decode", latents, out, "--checkpoint", checkpoint, **options).returncode == 0
    assert len(read_clip(out)) == 6
    assert start("info", "missing.mp4", **options).returncode == 2


def test_error_with_closed_standard_error_is_not_printed_elsewhere() -> None:
    ended = start("info", "missing.mp4", capture_output=False, stdout=subprocess.PIPE, preexec_fn=closed(2))
    assert (ended.returncode, ended.stdout) == (2, b"")


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("info", "-q")])
def test_reader_that_has_gone_is_no_error(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = start(*arguments, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_standard_output_is_one_sentence_and_full_standard_error_none() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = start("--help", capture_output=False, stdout=full, stderr=subprocess.PIPE)
        sentence = b"wan-vae: the result cannot be printed (No space left on device).\n"
        assert (ended.returncode, ended.stderr) == (2, sentence)
        assert start("info", "missing.mp4", capture_output=False, stderr=full).returncode == 2


def test_names_are_printed_in_every_encoding(clip: Path) -> None:
    named = clip.rename(clip.with_name("\u4e2d.mkv"))
    ended = start("info", named, "-q", env={"PYTHONIOENCODING": "latin-1"})
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"\\u4e2d.mkv" in ended.stdout


@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_help_without_docstrings(flag: str) -> None:
    ended = start("encode", "--help", python=(flag,))
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"--checkpoint" in ended.stdout


@pytest.mark.slow
def test_too_little_memory_for_torch_is_one_sentence(clip: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**29, resource.RLIM_INFINITY))

    ended = start("encode", clip, tmp_path / "a.safetensors", "-q", preexec_fn=limit)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"wan-vae: there is not enough memory (")
    assert ended.stderr.count(b"\n") == 1


def test_few_file_handles_and_no_folder_for_temporary_files_are_enough(
    clip: Path, checkpoint: Path, tmp_path: Path
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    nowhere = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), "/nonexistent")
    options = {"env": nowhere, "preexec_fn": limit}
    ended = start("encode", clip, tmp_path / "a.safetensors", "--checkpoint", checkpoint, "-q", **options)
    assert (ended.returncode, ended.stderr) == (0, b"")
