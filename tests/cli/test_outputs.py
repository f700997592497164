"""Outputs whose places change while they are made, and places that are refused before any work."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import read_clip, run, write_clip
from tests.cli.test_errors import assert_one_sentence, listing
from wan_vae import UserError, reconstruct_file


def test_outputs_that_appear_meanwhile_are_kept_and_nothing_made_is_lost(
    clip: Path, checkpoint: Path, tmp_path: Path
) -> None:
    names = ("out.mkv", "pairs.mkv", "sheet.png")
    out, pairs, sheet = (tmp_path / name for name in names)

    def appear(done: int, total: int) -> None:
        for name in names:
            (tmp_path / name).write_text("theirs", encoding="utf-8")

    def attempt(*, overwrite: bool) -> None:
        reconstruct_file(
            clip, out, checkpoint, side_by_side=pairs, contact_sheet=sheet, progress=appear, overwrite=overwrite
        )

    with pytest.raises(UserError, match=r"out\.mkv appeared while it was made, and was not replaced"):
        attempt(overwrite=False)
    assert {(tmp_path / name).read_text(encoding="utf-8") for name in names} == {"theirs"}
    kept = {"out-1.mkv", "pairs-1.mkv", "sheet-1.png"}
    assert {path.name for path in tmp_path.iterdir()} == {clip.name, *names, *kept}
    made = read_clip(tmp_path / "out-1.mkv")
    assert made.shape == read_clip(clip).shape
    attempt(overwrite=True)
    np.testing.assert_array_equal(read_clip(out), made)
    assert {path.name for path in tmp_path.iterdir()} == {clip.name, *names, *kept}


def test_outputs_in_the_folder_they_are_made_from_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    write_clip(pictures, frames=2, width=16, height=16, fps=24)
    (tmp_path / "link").symlink_to(pictures)
    before = listing(tmp_path)
    for source, out in (
        (pictures, pictures),
        (pictures, pictures / "000000.png"),
        (pictures, pictures / "new.png"),
        (pictures, pictures / "new"),
        (tmp_path / "link", pictures / "new" / "a.mkv"),
        (pictures, tmp_path / "link" / "a.mkv"),
    ):
        arguments = ("reconstruct", source, out, "--checkpoint", checkpoint, "--overwrite")
        assert_one_sentence(run(capsys, *arguments), str(out))
        assert listing(tmp_path) == before


def test_outputs_that_are_not_named_have_names_after_the_input_and_replace_nothing(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    write_clip(tmp_path / "picture.png", frames=1, width=16, height=16, fps=24)
    options = ("--checkpoint", checkpoint)
    made = (
        (("encode", clip), "clip.safetensors"),
        (("encode", clip, "--format", "comfyui"), "clip.latent"),
        (("decode", "clip.safetensors"), "clip_decoded.mp4"),
        (("reconstruct", clip), "clip_reconstructed.mp4"),
        (("reconstruct", tmp_path / "picture.png"), "picture_reconstructed.png"),
    )
    for command, name in made:
        assert run(capsys, *command, *options, "--json").result()["output"] == name
        assert_one_sentence(run(capsys, *command, *options, "-q"), f"{name} exists")
    (tmp_path / "link.mkv").symlink_to(clip)
    assert run(capsys, "encode", tmp_path / "link.mkv", *options, "--json").result()["output"] == "link.safetensors"
    assert {path.name for path in here.iterdir()} == {name for _, name in made} | {"link.safetensors"}


def test_clips_without_a_place_for_their_latents_are_refused(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(tmp_path)
    outcome = run(capsys, "encode", clip, clip, "--checkpoint", checkpoint, "--overwrite")
    assert_one_sentence(outcome, "The last of several paths is that of the latents", "clip.mkv ends like a clip")
    outcome = run(capsys, "encode", clip, clip, tmp_path / "out.safetensors", "--checkpoint", checkpoint)
    assert_one_sentence(outcome, "The latents of several clips go to a folder", "out.safetensors ends like a file")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / clip.name).symlink_to(clip)
    before = listing(tmp_path)
    outcome = run(capsys, "encode", tmp_path / "clips", tmp_path / "out.latent", "--checkpoint", checkpoint)
    assert_one_sentence(outcome, "The latents of several clips go to a folder", "out.latent ends like a file")
    outcome = run(capsys, "encode", clip, clip, tmp_path / "out", "--checkpoint", checkpoint, "--overwrite")
    assert_one_sentence(outcome, "--overwrite is for a single clip")
    assert listing(tmp_path) == before


def test_a_folder_of_latents_without_a_number_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latents").mkdir()
    outcome = run(capsys, "decode", tmp_path / "latents", tmp_path / "a.mp4", "--checkpoint", checkpoint)
    assert_one_sentence(outcome, "latents is a folder", "--index")


def test_missing_parent_folders_of_outputs_are_created(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "b" / "clip.safetensors"
    assert run(capsys, "encode", clip, out, "--checkpoint", checkpoint).code == 0
    assert out.is_file()


def test_names_not_in_utf8_are_read_back_or_refused(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / os.fsdecode(b"f\xe9")
    options = ("--checkpoint", checkpoint)
    for command in (
        ("encode", clip, folder / "a.safetensors", *options),
        ("convert", checkpoint, folder / "a.safetensors", "--layout", "wan"),
    ):
        assert_one_sentence(run(capsys, *command), "f\\udce9/a.safetensors is not in UTF-8")
    assert not folder.exists()
    for name in ("a.mkv", "a", "a.gif"):
        assert (
            run(
                capsys, "reconstruct", clip, folder / name, "--lossless" if name != "a.gif" else "--overwrite", *options
            ).code
            == 0
        )
        assert len(read_clip(folder / name)) == 6
    assert run(capsys, "encode", folder / "a.mkv", tmp_path / "a\nb.safetensors", *options).code == 0
    assert run(capsys, "info", tmp_path / "a\nb.safetensors").code == 0
    assert run(capsys, "decode", tmp_path / "a\nb.safetensors", folder / os.fsdecode(b"\xe9.mkv"), *options).code == 0
