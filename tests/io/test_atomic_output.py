import os
from pathlib import Path

import pytest

from wan_vae import UserError
from wan_vae.io.atomic_output import check_distinct, check_output, remove_partial, written_beside


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
