from pathlib import Path

import pytest

from wan_vae import UserError
from wan_vae.files import check_output, written_beside


def test_the_output_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with written_beside(out) as beside:
        beside.write_text("new", encoding="utf-8")
        assert (beside.parent, beside.suffix) == (tmp_path, ".mp4")
        assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_folder", [True, False])
def test_an_exception_leaves_what_was_there(error: type[BaseException], is_folder: bool, tmp_path: Path) -> None:
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


def test_an_empty_folder_is_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_output(tmp_path / "out", overwrite=False)
    with written_beside(tmp_path / "out") as beside:
        beside.mkdir()
        (beside / "0.png").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]


def test_a_folder_with_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cat.png").touch()
    with pytest.raises(UserError, match="already holds files"):
        check_output(tmp_path / "out", overwrite=True)
