"""User errors print one sentence on standard error, exit with code 2 and leave no files."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.cli.running import Outcome, run, start, write_clip
from tests.helpers import random_vae, small_config


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_one_sentence(outcome: Outcome, *words: str) -> None:
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("wan-vae: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith((".\n", "?\n"))
    for word in words:
        assert word in outcome.err


BAD_CLIPS: dict[str, Callable[[Path], object]] = {
    "missing.mp4": lambda path: None,
    "text.mp4": lambda path: path.write_text("This is not a video.\n" * 100, encoding="utf-8"),
    "empty.mp4": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
    "cut.mkv": lambda path: path.write_bytes(
        (data := write_clip(path, frames=9, width=64, height=48, fps=Fraction(25)).read_bytes())[: len(data) // 2]
    ),
}


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
@pytest.mark.parametrize("name", BAD_CLIPS)
def test_bad_clip_prints_one_sentence(
    name: str, command: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BAD_CLIPS[name](tmp_path / name)
    before = listing(tmp_path)
    out = tmp_path / ("out.safetensors" if command == "encode" else "out.mkv")
    assert_one_sentence(run(capsys, command, tmp_path / name, out, "--checkpoint", checkpoint), name)
    assert listing(tmp_path) == before


def corrupt(checkpoint: Path, path: Path) -> None:
    path.write_bytes(checkpoint.read_bytes()[:1000])


def half(checkpoint: Path, path: Path) -> None:
    weights = load_file(checkpoint)
    save_file({name: weight for name, weight in weights.items() if not name.startswith("encoder")}, path)


def other_model(checkpoint: Path, path: Path) -> None:
    save_file({"text_model.embeddings.weight": torch.zeros(2, 2)}, path)


def nan(checkpoint: Path, path: Path) -> None:
    weights = load_file(checkpoint)
    weights["encoder.conv1.bias"][0] = torch.nan
    with safe_open(checkpoint, "pt") as file:
        save_file(weights, path, metadata=file.metadata())


@pytest.mark.parametrize("spoil", [corrupt, half, other_model, nan])
def test_bad_checkpoint_prints_one_sentence(
    spoil: Callable[[Path, Path], None],
    clip: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(checkpoint, tmp_path / "bad.safetensors")
    before = listing(tmp_path)
    bad = tmp_path / "bad.safetensors"
    for arguments in (
        ("encode", clip, tmp_path / "out.safetensors", "--checkpoint", bad),
        ("reconstruct", clip, tmp_path / "out.mkv", "--checkpoint", bad),
        ("convert", bad, tmp_path / "out.safetensors", "--layout", "wan"),
        ("info", bad),
    ):
        assert_one_sentence(run(capsys, *arguments), "bad.safetensors")
        assert listing(tmp_path) == before


def cut_latents(latents: Path) -> None:
    latents.write_bytes(latents.read_bytes()[:-100])


def nan_latents(latents: Path) -> None:
    with safe_open(latents, "pt") as file:
        metadata, tensor = file.metadata(), file.get_tensor("latents").clone()
    tensor[0, 0, 2, 0, 0] = torch.nan
    save_file({"latents": tensor}, latents, metadata=metadata)


def other_version(latents: Path) -> None:
    with safe_open(latents, "pt") as file:
        metadata, tensor = file.metadata(), file.get_tensor("latents")
        save_file({"latents": tensor}, latents, metadata=metadata | {"version": "2"})


def wrong_size(latents: Path) -> None:
    with safe_open(latents, "pt") as file:
        metadata, tensor = file.metadata(), file.get_tensor("latents")
        save_file({"latents": tensor[:, :, :2].contiguous()}, latents, metadata=metadata)


def no_tensor(latents: Path) -> None:
    save_file({"latents": torch.zeros(3)}, latents)


def no_format(latents: Path) -> None:
    spoil_metadata(format="wan_vae.latentS")(latents)


def spoil_metadata(**changes: str) -> Callable[[Path], None]:
    def spoil(latents: Path) -> None:
        with safe_open(latents, "pt") as file:
            save_file({"latents": file.get_tensor("latents")}, latents, metadata=file.metadata() | changes)

    return spoil


@pytest.mark.parametrize(
    "changes",
    [
        {"fps": "1/0"},
        {"fps": "1e400"},
        {"fps": "0"},
        {"frames": "many"},
        {"pixel_aspect": "100000000000/3"},
        {"color": '{"matrix": "foo", "full_range": false}'},
        {"color": '{"matrix": ["bt709"], "full_range": false}'},
        {"color": '{"matrix": "bt709", "full_range": false, "primaries": "a"}'},
        {"color": "[" * 5000},
        {"config": "{}"},
        {"config": "[]"},
    ],
)
def test_latents_with_damaged_metadata_are_refused(
    changes: dict[str, str], clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = tmp_path / "l.safetensors"
    run(capsys, "encode", clip, latents, "--checkpoint", checkpoint)
    spoil_metadata(**changes)(latents)
    assert_one_sentence(run(capsys, "info", latents), "l.safetensors")
    assert_one_sentence(run(capsys, "decode", latents, tmp_path / "o.mkv", "--checkpoint", checkpoint), "l.safetensors")


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_overflowing_values_are_not_written(
    command: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud, out = tmp_path / "loud.safetensors", tmp_path / ("o.safetensors" if command == "encode" else "o.mkv")
    vae = random_vae(small_config(), torch.float32)
    vae.encoder.head.conv.weight.mul_(3e5)
    vae.save(loud)
    before = listing(tmp_path)
    arguments = (command, clip, out, "--checkpoint", loud, "--dtype", "float16", "--quiet")
    assert_one_sentence(run(capsys, *arguments), "NaN", "float16", "wider")
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "spoil", [cut_latents, nan_latents, other_version, wrong_size, no_tensor, no_format, Path.unlink]
)
def test_bad_latents_print_one_sentence(
    spoil: Callable[[Path], None], clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = tmp_path / "l.safetensors"
    run(capsys, "encode", clip, latents, "--checkpoint", checkpoint)
    spoil(latents)
    before = listing(tmp_path)
    command = ("decode", latents, tmp_path / "o.mkv", "--checkpoint", checkpoint, "--quiet")
    assert_one_sentence(run(capsys, *command), "l.safetensors")
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "changes", [{"latent_channels": 2}, {"temporal_downsample": (False,)}, {"latent_mean": (0.0, 0.0, 0.0)}]
)
def test_latents_of_another_architecture_are_refused(
    changes: dict[str, object], clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, other = tmp_path / "l.safetensors", tmp_path / "other.safetensors"
    random_vae(small_config(**changes), torch.float32).save(other)
    run(capsys, "encode", clip, latents, "--checkpoint", checkpoint)
    assert_one_sentence(run(capsys, "decode", latents, tmp_path / "o.mkv", "--checkpoint", other), "l.safetensors")


def test_output_that_would_destroy_something_is_refused(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.mkv").write_text("precious", encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_text("precious", encoding="utf-8")
    (tmp_path / "link.mkv").symlink_to(clip)
    before = listing(tmp_path)
    for out, words in (
        (clip, ("both input and output",)),
        (tmp_path / "link.mkv", ("both input and output",)),
        (tmp_path / "kept.mkv", ("exists", "--overwrite")),
        (tmp_path / "pictures", ("already holds files",)),
        (tmp_path / "kept.mkv" / "nowhere" / "out.mkv", ("kept.mkv is not a folder",)),
        (clip / "out.mkv", ("not a folder",)),
        (tmp_path / "out.xyz", ("out.xyz",)),
    ):
        assert_one_sentence(run(capsys, "reconstruct", clip, out, "--checkpoint", checkpoint), *words)
        assert listing(tmp_path) == before
    arguments = ("reconstruct", clip, clip, "--checkpoint", checkpoint, "--overwrite")
    assert_one_sentence(run(capsys, *arguments), "both input and output")
    arguments = ("convert", checkpoint, checkpoint, "--layout", "wan", "--overwrite")
    assert_one_sentence(run(capsys, *arguments), "both input and output")


def test_overwrite_replaces_the_output_only_when_done(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("old", encoding="utf-8")
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    arguments = (out, "--checkpoint", checkpoint, "--overwrite")
    assert run(capsys, "encode", tmp_path / "text.mp4", *arguments).code == 2
    assert out.read_text(encoding="utf-8") == "old"
    assert run(capsys, "encode", clip, *arguments).code == 0
    assert out.stat().st_size > 1000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_in_an_unwritable_folder_is_refused(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    out = tmp_path / "locked" / "out.mkv"
    assert_one_sentence(run(capsys, "reconstruct", clip, out, "--checkpoint", checkpoint), "not writable")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "640"), ("'640'", "WIDTHxHEIGHT")),
        (("--frames", "3"), ("'3'", "A:B")),
        (("--frames", "-:2"), ("A:B",)),
        (("--frames", "2:2"), ("6",)),
        (("--frames", "9:"), ("6",)),
        (("--fps", "fast"), ("'fast'",)),
        (("--fps", "1/0"), ("'1/0'",)),
        (("--fps", "-3"), ("-3",)),
        (("--fps", "1e9"), ("1e9",)),
        (("--fps", "1000000"), ("1000000",)),
        (("--size", "0x4"), ("0x4",)),
        (("--size", "100000x100000"), ("100000x100000",)),
        (("--size", "99999999999x9"), ("99999999999x9",)),
        (("--frames", "0:99999999999999999999999"), ("A:B",)),
        (("--frames", "-3:"), ("-3:",)),
        (("--length", "7"), ("6 frames from number 0 on", "not 7")),
        (("--length", "0"), ("--length",)),
        (("--size", "x"), ("'x'", "WIDTHxHEIGHT")),
        (("--size", "0x"), ("0x",)),
        (("--fit", "crop"), ("no size", "--size")),
        (("--fit", "fill", "--size", "8x8"), ("fill", "stretch")),
        (("--length", "2", "--frames", "1:5"), ("length is 2", "ends at 5", "--frames 1: --length 2")),
        (("--device", "tpu"), ("tpu", "auto")),
        (("--dtype", "fp8"), ("fp8",)),
        (("--nonsense",), ("--nonsense",)),
        (("--threads", "100000"), ("--threads is 100000", "at most 1024")),
        (("--checkpoint", ""), ("--checkpoint is empty",)),
        (("--size=",), ("--size is empty",)),
        (("",), ("argument number 6 is empty",)),
    ],
)
def test_bad_option_prints_one_sentence(
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    clip: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = listing(tmp_path)
    command = ("encode", clip, tmp_path / "out.safetensors", "--checkpoint", checkpoint, *arguments)
    assert_one_sentence(run(capsys, *command), *words)
    assert listing(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_refused(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("encode", clip, tmp_path / "out.safetensors", "--checkpoint", checkpoint, "--device", "cuda")
    assert_one_sentence(run(capsys, *command), "--device cuda is not available", "cpu is")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_interrupted_command_leaves_no_output(
    command: str, number: signal.Signals, long_clip: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / ("out.safetensors" if command == "encode" else "out.mkv")
    process = start(command, long_clip, out, "--checkpoint", checkpoint, "--fps", "1000")
    try:
        # A latents file has no name until it is whole, so of an encoding run nothing is to be seen.
        begun = time.monotonic() + (10 if command == "encode" else 60)
        while not any(folder.iterdir()) and time.monotonic() < begun:
            time.sleep(0.05)
        time.sleep(1)
        assert process.poll() is None, "it ended too early to be interrupted"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -number
    assert not any(folder.iterdir())
    assert err.splitlines()[-1] == "wan-vae: interrupted; no output was written."
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["encode", "reconstruct", "convert"])
def test_full_disk_leaves_no_output(command: str, checkpoint: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", frames=40, width=64, height=48, fps=Fraction(25))
    before = listing(tmp_path)
    out = tmp_path / ("out.mkv" if command == "reconstruct" else "out.safetensors")
    source = (checkpoint, out, "--layout", "wan") if command == "convert" else (clip, out, "--checkpoint", checkpoint)

    # As on a full disk, writing fails in the middle.
    process = start(
        command,
        *source,
        "--quiet",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY)),
    )
    out_text, err = process.communicate(timeout=120)
    assert_one_sentence(Outcome(process.returncode, out_text, err), out.name)
    assert listing(tmp_path) == before


def test_help_imports_no_torch() -> None:
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "wan_vae", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "wan_vae.cli.app" in imported
    assert not imported & {"torch", "numpy", "av", "safetensors"}
    assert "reconstruct" in process.stdout


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct", "info", "convert"])
def test_script_is_its_command(command: str) -> None:
    script = Path(__file__).parents[2] / "scripts" / f"{command}.py"
    process = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert f"wan-vae {command}" in process.stdout
