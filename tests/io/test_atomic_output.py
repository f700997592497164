import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wan_vae import UserError
from wan_vae.io.atomic_output import OutputTakenError, check_distinct, check_output, remove_partial, written_beside


def test_written_beside_renames_on_success(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with written_beside(out) as beside:
        beside.write_text("new", encoding="utf-8")
        assert (beside.parent, beside.suffix) == (tmp_path, ".mp4")
        assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_folder", [True, False])
def test_written_beside_after_an_exception_keeps_the_old_file(
    error: type[BaseException], is_folder: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.write_text("old", encoding="utf-8")

    def fail() -> None:
        with written_beside(out) as beside:
            if is_folder:
                beside.mkdir()
                beside = beside / "0.png"
            beside.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"out": "old"}


def test_written_beside_replaces_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_output(tmp_path / "out", overwrite=False, may_be_folder=True)
    with written_beside(tmp_path / "out") as beside:
        beside.mkdir()
        (beside / "0.png").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]


def test_check_output_refuses_a_folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cat.png").touch()
    with pytest.raises(UserError, match="already holds files"):
        check_output(tmp_path / "out", overwrite=True, may_be_folder=True)


def test_check_output_refuses_a_folder_a_pipe_and_a_device(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, words in (("folder", "is a folder"), ("pipe", "a device or a pipe"), ("link", "a device or a pipe")):
        with pytest.raises(UserError, match=words):
            check_output(tmp_path / name, overwrite=True)


def test_written_beside_of_a_link_writes_its_target(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link.mp4", tmp_path / "elsewhere" / "target.mp4"
    link.symlink_to(target)
    check_output(link, overwrite=False)
    with written_beside(link) as beside:
        beside.write_text("new", encoding="utf-8")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        check_output(link, overwrite=False)


def test_check_output_refuses_a_file_of_an_input_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.png").touch()
    with pytest.raises(UserError, match="both input and output"):
        check_output(tmp_path / "pictures" / "0.png", overwrite=True, inputs=(tmp_path / "pictures",))
    check_output(tmp_path / "pictures" / "new.safetensors", overwrite=False, inputs=(tmp_path / "pictures",))


def test_check_distinct_refuses_equal_and_nested_outputs(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a.mkv")
    check_distinct(tmp_path / "a.mkv", tmp_path / "b.mkv", tmp_path / "a")
    for other, words in (("a.mkv", "two outputs"), ("link", "two outputs"), ("a.mkv/b.png", "inside the other")):
        for pair in ((tmp_path / "a.mkv", tmp_path / other), (tmp_path / other, tmp_path / "a.mkv")):
            with pytest.raises(UserError, match=words):
                check_distinct(*pair)


def test_written_beside_sets_the_permissions_of_the_umask_or_of_the_old_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for existing in (None, 0o604):
            out = tmp_path / "out.safetensors"
            if existing is not None:
                out.chmod(existing)
            with written_beside(out) as beside:
                beside.touch(mode=0o600)
            assert out.stat().st_mode & 0o777 == (0o640 if existing is None else existing)
    finally:
        os.umask(before)


def test_written_beside_sets_the_permissions_of_files_in_a_folder(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with written_beside(tmp_path / "vae") as beside:
            (beside / "inner").mkdir(parents=True)
            for file in (beside / "weights.safetensors", beside / "inner" / "config.json"):
                file.touch(mode=0o600)
    finally:
        os.umask(before)
    for name in ("weights.safetensors", "inner/config.json"):
        assert (tmp_path / "vae" / name).stat().st_mode & 0o777 == 0o640


def test_written_beside_creates_parent_folders_and_removes_them_after_an_error(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "out.mp4"
    check_output(str(out), overwrite=False)
    assert not any(tmp_path.iterdir())

    def write(error: Exception | None) -> None:
        with written_beside(out) as beside:
            beside.touch()
            if error is not None:
                raise error

    with pytest.raises(RuntimeError):
        write(RuntimeError())
    assert not any(tmp_path.iterdir())
    write(None)
    assert [path.name for path in out.parent.iterdir()] == ["out.mp4"]
    with pytest.raises(UserError, match=r"cannot be written: .*out\.mp4 is not a folder; name another place"):
        check_output(out / "new" / "inner.mp4", overwrite=True)


def test_remove_partial_removes_the_files_of_killed_processes(tmp_path: Path) -> None:
    names = (".one.partial-12.pt", ".two.partial-7.npy", "one.pt", ".hidden")
    for name in names:
        (tmp_path / name).touch()
    remove_partial(tmp_path, "one")
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names[2:])


def write(path: Path, text: str, is_folder: bool = False) -> None:
    if is_folder:
        path.mkdir()
        path = path / "0.png"
    path.write_text(text, encoding="utf-8")


def make(out: Path, *, meanwhile: Callable[[], None], overwrite: bool = True, is_folder: bool = False) -> None:
    with written_beside(out, overwrite=overwrite) as beside:
        write(beside, "made", is_folder)
        meanwhile()


def test_check_output_refuses_names_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    for path, words in (
        (tmp_path / "a.mp4.", "ends in a dot or a space"),
        (tmp_path / "a.mp4 ", "ends in a dot or a space"),
        ("-", "'-' is no name"),
        ("", "'' is no name"),
        (Path(), "'.' is no name"),
        (tmp_path / "a\0.mp4", "null"),
        (tmp_path / "loop.mp4", "Too many levels"),
        (tmp_path / "loop.mp4" / "a.mp4", "Too many levels"),
        (tmp_path / ("\u00e9" * (longest // 2) + "m.mp4"), "takes at most|File name too long"),
        (tmp_path / ("n" * (longest + 1)) / "a.mp4", "takes at most|File name too long"),
        (tmp_path / Path(*["n" * longest] * 20), "too long"),
    ):
        with pytest.raises(UserError, match=words):
            check_output(path, overwrite=True)
    with pytest.raises(UserError, match="not in UTF-8"):
        check_output(tmp_path / os.fsdecode(b"\xe9.safetensors"), overwrite=True, must_be_utf8=True)


@pytest.mark.parametrize(
    "name", ["n" * 251 + ".mp4", "n" * 255, "\u4e2d" * 83 + ".mp4", "a\nb.mp4", os.fsdecode(b"\xe9.mp4")]
)
def test_written_beside_takes_every_name_that_check_output_takes(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    check_output(out, overwrite=False)
    with written_beside(out) as beside:
        beside.touch()
    out.unlink()
    with pytest.raises(OutputTakenError):
        make(out, meanwhile=out.touch, overwrite=False)
    assert len(list(tmp_path.iterdir())) == 2


def test_check_output_of_inputs_that_cannot_be_read_leaves_them_to_their_reader(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "out.mp4").touch()
    check_output(tmp_path / "out.mp4", overwrite=True, inputs=(tmp_path / "loop.mp4", "null\0", tmp_path / "none"))


def test_check_output_refuses_a_hard_link_to_the_input(tmp_path: Path) -> None:
    (tmp_path / "in.mp4").touch()
    (tmp_path / "out.mp4").hardlink_to(tmp_path / "in.mp4")
    with pytest.raises(UserError, match="both input and output"):
        check_output(tmp_path / "out.mp4", overwrite=True, inputs=(tmp_path / "in.mp4",))


def test_check_output_refuses_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        check_output(tmp_path / "out", overwrite=True, may_be_folder=True)


def test_check_output_refuses_to_replace_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="current folder"):
        check_output(tmp_path, overwrite=False, may_be_folder=True)


@pytest.mark.parametrize("is_folder", [True, False])
@pytest.mark.parametrize("appears_folder", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_written_beside_keeps_what_appears_meanwhile(
    is_folder: bool, appears_folder: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refuse(*paths: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    out, kept = (tmp_path / name for name in ("a.mp4", "a-2.mp4"))
    write(tmp_path / "a-1.mp4", "mine")
    with pytest.raises(OutputTakenError, match=r"a\.mp4 appeared .* not replaced; what was made is .*/a-2\.mp4"):
        make(out, meanwhile=lambda: write(out, "theirs", appears_folder), overwrite=False, is_folder=is_folder)
    found = {path.name: (path / "0.png" if path.is_dir() else path).read_text() for path in tmp_path.iterdir()}
    assert found == {"a.mp4": "theirs", "a-1.mp4": "mine", kept.name: "made"}


def test_written_beside_with_overwrite_replaces_a_file_that_appears_and_keeps_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    make(out, meanwhile=lambda: write(out, "theirs"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.mp4": "made"}
    out.unlink()
    with pytest.raises(OutputTakenError, match=r"a-1\.mp4"):
        make(out, meanwhile=lambda: write(out, "theirs", is_folder=True))
    assert (out / "0.png").read_text() == "theirs"
    assert (tmp_path / "a-1.mp4").read_text() == "made"


def test_written_beside_without_links_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    with written_beside(tmp_path / "a.mp4", overwrite=False) as beside:
        write(beside, "made")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_written_beside_in_a_folder_that_vanishes_raises_its_error(tmp_path: Path) -> None:
    out = tmp_path / "gone" / "a.mp4"
    with pytest.raises(FileNotFoundError):
        make(out, meanwhile=lambda: shutil.rmtree(out.parent), overwrite=False)
    assert not any(tmp_path.iterdir())


KILLED = """
import os, signal, sys, time
from pathlib import Path
from wan_vae.io.atomic_output import written_beside
with written_beside(sys.argv[1]) as beside:
    beside.mkdir()
    (beside / "0.png").touch()
    print("begun", flush=True)
    time.sleep(60)
"""


def test_check_output_removes_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "a [1] with a long name.mp4"
    (tmp_path / ".a [1] with a long name.mp4.swp").touch()
    (tmp_path / ".other.partial-1-0123abcd.mp4").touch()
    kept = set(tmp_path.iterdir())
    with (
        written_beside(out) as mine,
        subprocess.Popen(
            [sys.executable, "-c", KILLED, out], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        mine.touch()
        living = set(tmp_path.iterdir())
        assert len(living - kept) == 4
        check_output(out, overwrite=False)
        assert set(tmp_path.iterdir()) == living
        process.kill()
        process.wait()
        check_output(out, overwrite=False)
        assert set(tmp_path.iterdir()) == kept | {mine, mine.with_suffix(".lock")}
    assert set(tmp_path.iterdir()) == kept | {out}
