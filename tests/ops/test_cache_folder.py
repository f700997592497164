from pathlib import Path
from unittest import mock

import pytest

from wan_vae.errors import UserError
from wan_vae.ops.autotune import cache_folder
from wan_vae.ops.cpu import build as native_library


def test_the_folder_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "wan_vae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "wan_vae"


def test_without_a_home_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    with mock.patch.object(Path, "home", side_effect=RuntimeError("no home")):
        native_library.library.cache_clear()
        try:
            assert native_library.library() is None
            with pytest.raises(UserError, match="XDG_CACHE_HOME"):
                native_library.build_kernels()
        finally:
            native_library.library.cache_clear()
