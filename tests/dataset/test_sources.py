"""Folders and lists of clips."""

import json
from pathlib import Path

import pytest

from wan_vae.dataset.sources import Source, list_sources, with_twins
from wan_vae.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.mp4", "b/10.PNG", "a.webm", "notes.md", ".hidden.mp4", ".git/c.mp4", "out/a.webm.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "a.txt").write_text(" A cat. \n", encoding="utf-8")
    return tmp_path


def test_list_sources_of_a_folder_finds_clips_below_and_their_captions(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = list_sources(folder, outside=folder / "out")
    assert [(source.name, source.caption) for source in found] == [
        ("a.webm", "A cat."),
        ("b/10.PNG", None),
        ("b/2.mp4", None),
    ]
    assert [source.path for source in found] == [folder / source.name for source in found]
    (record,) = caplog.records
    assert "left out: 1 of .md" in record.message


def test_list_sources_of_a_folder_with_its_cache_says_nothing_of_the_caches_files(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "manifest.jsonl").touch()
    assert len(list_sources(folder, outside=folder)) == 3
    (record,) = caplog.records
    assert record.message.endswith("left out: 1 of .md.")


def test_list_sources_of_a_single_clip_is_that_clip(folder: Path) -> None:
    (source,) = list_sources(folder / "a.webm")
    assert (source.path, source.name, source.caption) == (folder / "a.webm", "a.webm", "A cat.")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_list_sources_of_a_list_keeps_its_order_and_columns(folder: Path, suffix: str) -> None:
    rows = [
        {"video": "b/2.mp4", "caption": "two", "start": 4, "stop": 9, "score": "0.5"},
        {"video": str(folder / "a.webm")},
    ]
    path = folder / f"list{suffix}"
    if suffix == ".txt":
        path.write_text("".join(f"{row['video']}\n\n" for row in rows), encoding="utf-8")
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        path.write_text(f"video,caption,start,stop,score\nb/2.mp4,two,4,9,0.5\n{folder}/a.webm,,,,\n", encoding="utf-8")
    first, second = list_sources(path)
    assert (first.path, first.name, second.path, second.name) == (
        folder / "b/2.mp4",
        "b/2.mp4",
        folder / "a.webm",
        "a.webm",
    )
    if suffix == ".txt":
        assert (first.caption, first.start, dict(first.extra)) == (None, None, {})
    else:
        assert (first.caption, first.start, first.stop, dict(first.extra)) == ("two", 4, 9, {"score": "0.5"})
    assert second.caption == "A cat."


def test_list_sources_of_a_clip_outside_the_lists_folder_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "lists" / "list.txt"
    path.parent.mkdir()
    path.write_text("../clips/a.mp4\n/data/b.mp4\n", encoding="utf-8")
    assert [source.name for source in list_sources(path)] == ["clips/a.mp4", "data/b.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.txt", None, "none.txt does not exist; name a folder of clips, or a list"),
        ("list.xml", "a.mp4", "is no list of clips; it must end in .txt, .jsonl, .csv"),
        ("list.txt", "\n", "names no clip; write a path a line"),
        ("list.jsonl", '{"path": 3}', "Line 1 of .*list.jsonl names no clip; give it a `path`"),
        ("list.jsonl", '{"path": "a.mp4"}\n[1]', "Line 2 of .* is no JSON object"),
        ("list.jsonl", "{", "Line 1 of .* is no JSON: "),
        ("list.csv", "path,start\na.mp4,²", "Line 2 of .*: start is '²'; it must be the number of a frame"),
        ("list.csv", "path,start\na.mp4," + 5000 * "1", "Line 2 of .*: start is '1111"),
        ("list.jsonl", '{"path": "a.mp4", "start": -1}', "Line 1 of .*: start is -1; it must be the number of a frame"),
        ("list.csv", "path,start\na.mp4,1,2\n", "Line 2 of .* has more columns than the header"),
        ("list.csv", "path\n\xff".encode("latin1"), "is no list in UTF-8"),
    ],
)
def test_list_sources_of_what_is_no_list_gets_a_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence):
        list_sources(tmp_path / name)


def test_list_sources_of_a_folder_without_clips_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no clip: no video and no image"):
        list_sources(tmp_path)


def test_with_twins_marks_clips_of_one_stem_in_any_folder(caplog: pytest.LogCaptureFixture) -> None:
    names = ("a.mp4", "sub/a.mkv", "sub/b.mp4", "sub.a/b.c.mp4", "b.c.mov")
    marked = with_twins([Source(Path("/clips") / name, name) for name in names], "musubi")
    assert [source.twin for source in marked] == [None, "a.mp4", None, None, "sub.a/b.c.mp4"]
    assert not caplog.records


def test_with_twins_warns_of_videos_among_images(caplog: pytest.LogCaptureFixture) -> None:
    marked = with_twins([Source(Path("/clips") / name, name) for name in ("a.mp4", "a.png")], "musubi")
    assert [source.twin for source in marked] == [None, None]
    assert "There are videos and images; musubi-tuner takes them from two folders" in caplog.text


def test_with_twins_marks_clips_of_one_folder_and_stem_for_simpletuner() -> None:
    names = ("a.mp4", "sub/a.mkv", "a.png", "sub.a/b.c.mp4", "b.c.mov")
    sources = [Source(Path("/clips") / name, name) for name in names]
    assert [source.twin for source in with_twins(sources, "simpletuner")] == [None, None, "a.mp4", None, None]
    assert with_twins(sources, "wan-vae") == sources
