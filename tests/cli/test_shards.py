"""Commands with --shards, run by several processes."""

import os
import re
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.cli.running import Outcome, read_clip, run, write_clip

ROOT = Path(__file__).parents[2]


def start_all(*commands: list[object]) -> list[Outcome]:
    """Run a command in processes that know of each other, as torchrun starts them, until all have ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": len(commands), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "wan_vae", *map(str, command), "--quiet"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {name: str(value) for name, value in meeting.items()}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
        )
        for rank, command in enumerate(commands)
    ]
    outcomes = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=60)
            outcomes.append(Outcome(process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return outcomes


def said(outcome: Outcome) -> list[str]:
    """Return what the program said of errors: torch may warn of others that have gone."""
    return [line for line in outcome.err.splitlines() if line.startswith("wan-vae: ") or "Traceback" in line]


@pytest.mark.slow
def test_encode_and_decode_with_shards_equal_one_process(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, three = tmp_path / "one.safetensors", tmp_path / "three.safetensors"
    options = ["--checkpoint", checkpoint, "--dtype", "fp32", "--device", "cpu"]
    run(capsys, "encode", clip, one, *options)
    first, *others = start_all(*[["encode", clip, three, *options, "--shards", 3, "--memory", "1GiB"]] * 3)
    assert "frames" in first.out, first.err
    assert [(other.code, other.out) for other in others] == [(0, "")] * 2
    (alone,), (shared,) = load_file(one).values(), load_file(three).values()
    assert (alone - shared).abs().max() <= 1e-4

    decoded, by_torchrun = tmp_path / "one.mkv", tmp_path / "two.mkv"
    run(capsys, "decode", one, decoded, *options, "--lossless")
    command = ["decode", one, by_torchrun, *options, "--lossless", "--shards", 2]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "wan_vae"]
        + [str(word) for word in command],
        check=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    difference = read_clip(decoded).astype(int) - read_clip(by_torchrun)
    assert np.abs(difference).max() <= 1


@pytest.mark.slow
def test_reconstruct_with_shards_equals_one_process(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", checkpoint, "--dtype", "fp32", "--device", "cpu", "--lossless"]
    run(capsys, "reconstruct", clip, tmp_path / "one.mkv", *options)
    first, second = start_all(*[["reconstruct", clip, tmp_path / "two.mkv", *options, "--shards", 2]] * 2)
    assert "PSNR" in first.out, first.err
    assert (second.code, second.out) == (0, "")
    difference = read_clip(tmp_path / "one.mkv").astype(int) - read_clip(tmp_path / "two.mkv")
    assert np.abs(difference).max() <= 1


@pytest.mark.slow
def test_memory_budget_with_shards_changes_no_pixel(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", checkpoint, "--dtype", "fp32", "--device", "cpu"]
    clip = write_clip(tmp_path / "clip.mkv", frames=5, width=192, height=128, fps=Fraction(25))
    latents, one, two = tmp_path / "latents.safetensors", tmp_path / "one.mkv", tmp_path / "two.mkv"
    run(capsys, "encode", clip, latents, *options)
    run(capsys, "decode", latents, one, *options, "--lossless")
    command = ["decode", latents, two, *options, "--lossless", "--shards", 2, "--memory"]
    first, second = start_all(*[[*command, "1MiB"]] * 2)
    assert (first.code, second.code, said(second)) == (2, 2, [])
    assert len(said(first)) == 1
    too_little = re.search(
        r"1.00MiB of memory is too little to decode this clip; (\d+MiB) is the small", said(first)[0]
    )
    assert too_little is not None, said(first)
    assert not two.exists()

    first, second = start_all(*[[*command, too_little[1]]] * 2)
    assert (first.code, second.code, second.out) == (0, 0, ""), first.err
    assert np.abs(read_clip(one).astype(int) - read_clip(two)).max() <= 1


@pytest.mark.slow
def test_error_of_all_processes_is_printed_by_the_first(tmp_path: Path) -> None:
    command = ["decode", tmp_path / "none.safetensors", tmp_path / "out.mkv", "--device", "cpu", "--shards", 2]
    first, second = start_all(command, command)
    assert (first.code, second.code) == (2, 2)
    assert said(first) == [f"wan-vae: {tmp_path / 'none.safetensors'} is not a file."]
    assert said(second) == []


def test_error_of_one_process_ends_all(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    common = ["encode", clip, tmp_path / "out.safetensors", "--device", "cpu", "--shards", 2, "--checkpoint"]
    first, second = start_all([*common, checkpoint], [*common, tmp_path / "none.pt"])
    assert (first.code, second.code) == (2, 2)
    assert said(first) == ["wan-vae: another of the processes that share the clip has ended."]
    assert len(said(second)) == 1
    assert "none.pt" in said(second)[0]
    assert list(tmp_path.iterdir()) == [clip]


@pytest.mark.slow
def test_picture_too_small_for_the_shards_is_refused(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    command = ["encode", clip, tmp_path / "out.safetensors", "--device", "cpu", "--shards", 3, "--size", "2x2"]
    first, *others = start_all(*[[*command, "--checkpoint", checkpoint]] * 3)
    assert said(first) == ["wan-vae: 3 devices cannot share a picture of 1x1 latents; 1 could."]
    assert [(other.code, said(other)) for other in others] == [(2, [])] * 2


def test_wrong_number_of_processes_is_refused_once(clip: Path, tmp_path: Path) -> None:
    command = ["encode", clip, tmp_path / "out.safetensors", "--shards", 3]
    first, second = start_all(command, command)
    assert said(first) == ["wan-vae: --shards is 3, but torchrun started 2; give both the same number."]
    assert (second.code, said(second)) == (2, [])


def test_shards_without_torchrun_prints_its_command(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["wan-vae", "encode", "my clip.mkv", "out.safetensors", "--shards", "4"])
    outcome = run(capsys, "encode", clip, tmp_path / "out.safetensors", "--shards", 4)
    assert outcome.code == 2
    assert outcome.err == (
        "wan-vae: --shards 4 takes 4 processes; start them with: torchrun --nproc-per-node 4 -m wan_vae"
        " encode 'my clip.mkv' out.safetensors --shards 4.\n"
    )
