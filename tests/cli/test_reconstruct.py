"""The further outputs of `reconstruct`: a side-by-side clip and a contact sheet."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.running import read_clip, run
from tests.cli.test_errors import assert_one_sentence, listing
from tests.helpers import random_vae, small_config
from tests.io.sources import encode, rgb_frames, smooth_pictures
from wan_vae.evaluation.contact_sheet import ContactSheet, SheetLayout
from wan_vae.evaluation.reconstruct import GAP
from wan_vae.io import open_clip, writer


def test_side_by_side_holds_source_and_reconstruction(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pairs = tmp_path / "out.mkv", tmp_path / "pairs.mkv"
    options = ("--checkpoint", checkpoint, "--lossless", "--side-by-side", pairs)
    result = run(capsys, "reconstruct", clip, out, *options, "--json").result()
    assert (result["output"], result["side_by_side"], result["contact_sheet"]) == (str(out), str(pairs), None)
    frames = read_clip(pairs)
    assert np.array_equal(frames[:, :, :19], read_clip(clip))
    assert np.array_equal(frames[:, :, 19 + GAP :], read_clip(out))
    with open_clip(out) as one, open_clip(pairs) as other:
        assert (one.info.fps, one.info.frames) == (other.info.fps, other.info.frames)


def test_side_by_side_carries_the_sound(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = encode(tmp_path / "loud.mkv", rgb_frames(smooth_pictures(6, 16, 24)), audio_codec="pcm_s16le")
    pairs = tmp_path / "pairs.mkv"
    options = ("--checkpoint", checkpoint, "--side-by-side", pairs)
    assert run(capsys, "reconstruct", clip, tmp_path / "out.mkv", *options).code == 0
    with open_clip(pairs) as written:
        assert written.info.has_audio
    assert np.abs(read_clip(pairs)[:, :, :24].astype(int) - read_clip(clip)).mean() < 4


def test_contact_sheet_shows_the_written_frames(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "out.mkv", tmp_path / "sheet.png"
    options = ("--checkpoint", checkpoint, "--lossless", "--contact-sheet", picture)
    result = run(capsys, "reconstruct", clip, out, *options, "--json").result()
    assert result["contact_sheet"] == str(picture)
    by_hand = ContactSheet(6)
    for pair in zip(read_clip(clip), read_clip(out), strict=True):
        by_hand.add(*pair)
    with Image.open(picture) as sheet:
        assert sheet.size == SheetLayout.of(19, 13).size(5)
        assert np.array_equal(np.asarray(sheet), np.asarray(by_hand.draw()))


def test_table_names_every_output(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extras = ("--side-by-side", tmp_path / "pairs.gif", "--contact-sheet", tmp_path / "sheet.png")
    outcome = run(capsys, "reconstruct", clip, tmp_path / "out.mkv", "--checkpoint", checkpoint, *extras)
    assert outcome.code == 0
    for name in ("out.mkv", "pairs.gif", "sheet.png"):
        assert name in outcome.out
        assert (tmp_path / name).exists()


def test_table_has_units_and_json_has_its_keys(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("reconstruct", clip, tmp_path / "out.mkv", "--checkpoint", checkpoint, "--overwrite")
    lines = dict(line.split("  ", 1) for line in run(capsys, *command).out.splitlines())
    lines = {label: value.strip() for label, value in lines.items()}
    assert lines["rate"] == "29.970 (30000/1001) frames/s"
    assert lines["PSNR"].endswith(" dB")
    assert lines["speed"].endswith(" frames/s")
    assert lines["peak memory"].endswith(("GiB", "MiB"))
    assert {"psnr", "ssim", "fps", "frames_per_second", "peak_memory"} <= run(
        capsys, *command, "--json"
    ).result().keys()


def test_threads_option_sets_those_of_torch(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    try:
        command = ("reconstruct", clip, tmp_path / "out.mkv", "--checkpoint", checkpoint, "--threads", "3")
        assert run(capsys, *command).code == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_upscaling_decoder_allows_side_by_side_but_no_contact_sheet(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, pairs, out = tmp_path / "upscale.safetensors", tmp_path / "pairs.mkv", tmp_path / "out.mkv"
    random_vae(small_config(output_upscale=2), torch.float32).save(checkpoint)
    before = listing(tmp_path)
    command = ("reconstruct", clip, out, "--checkpoint", checkpoint)
    refused = run(capsys, *command, "--contact-sheet", tmp_path / "sheet.png")
    assert_one_sentence(refused, "upscale.safetensors", "2 times the size", "--side-by-side")
    assert listing(tmp_path) == before
    assert run(capsys, *command, "--lossless", "--side-by-side", pairs).code == 0
    frames = read_clip(pairs)
    assert np.array_equal(frames[:, ::2, :38:2], read_clip(clip))
    assert np.array_equal(frames[:, :, 38 + GAP :], read_clip(out))


def test_conflicting_outputs_are_refused(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.png").write_text("precious", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out.mkv"
    before = listing(tmp_path)
    for target, extras, words in (
        (out, ("--side-by-side", out), ("out.mkv", "two outputs")),
        (out, ("--side-by-side", tmp_path / "empty" / ".." / "out.mkv"), ("out.mkv", "two outputs")),
        (tmp_path / "s.png", ("--contact-sheet", tmp_path / "s.png"), ("s.png", "two outputs")),
        (tmp_path / "empty", ("--contact-sheet", tmp_path / "empty" / "s.png"), ("one inside the other",)),
        (out, ("--contact-sheet", tmp_path / "sheet.jpg"), ("sheet.jpg", ".png")),
        (out, ("--contact-sheet", tmp_path / "old.png"), ("old.png", "--overwrite")),
        (out, ("--contact-sheet", tmp_path / "old.png" / "s.png"), ("not a folder",)),
        (out, ("--side-by-side", clip), ("both input and output",)),
        (out, ("--side-by-side", tmp_path / "pairs.xyz"), ("pairs.xyz",)),
    ):
        assert_one_sentence(run(capsys, "reconstruct", clip, target, "--checkpoint", checkpoint, *extras), *words)
        assert listing(tmp_path) == before


def test_failure_leaves_none_of_the_outputs(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(tmp_path)
    command = ("reconstruct", clip, tmp_path / "out.mkv", "--checkpoint", checkpoint, "--quiet")
    extras = ("--contact-sheet", tmp_path / "sheet.png", "--side-by-side")
    # An image file holds one frame, which shows only at the second.
    assert_one_sentence(run(capsys, *command, *extras, tmp_path / "pairs.png"), "one picture")
    assert listing(tmp_path) == before

    def full_disk(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "sheet.png"))

    monkeypatch.setattr(Image.Image, "save", full_disk)
    assert_one_sentence(run(capsys, *command, *extras, tmp_path / "pairs.mkv"), "No space left", "sheet.png")
    assert listing(tmp_path) == before

    finish = writer.AvSink.finish
    finished = []

    def second_fails(sink: writer.AvSink) -> None:
        finished.append(finish(sink))
        if len(finished) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr(writer.AvSink, "finish", second_fails)
    assert_one_sentence(run(capsys, *command, *extras, tmp_path / "pairs.mkv"), "pairs.mkv", "make room")
    assert listing(tmp_path) == before


def test_encode_and_reconstruct_say_what_they_leave_out(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    clip = encode(tmp_path / "loud.mkv", rgb_frames(smooth_pictures(2, 16, 24)), audio_codec="pcm_s16le")
    assert run(capsys, "encode", clip, tmp_path / "l.safetensors", "--checkpoint", checkpoint).code == 0
    assert [
        record.message for record in caplog.records if "has audio" in record.message and "reconstruct" in record.message
    ]
    caplog.clear()
    assert run(capsys, "reconstruct", clip, tmp_path / "out.mkv", "--checkpoint", checkpoint).code == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
