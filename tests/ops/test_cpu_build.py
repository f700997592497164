"""How the compiled kernels are built, and the cache that they are kept in."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ops.cpu_cases import COMPILER, needs_compiler
from wan_vae.errors import UserError
from wan_vae.ops.cpu import kernels as native


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path / "wan_vae"
    native.library.cache_clear()


@needs_compiler
class TestBuild:
    def test_library_compiles_nothing(self, empty_cache: Path) -> None:
        assert native.library() is None
        assert not empty_cache.exists()

    def test_is_kept(self, built_kernels: Path, empty_cache: Path) -> None:
        kept = shutil.copytree(built_kernels.parent, empty_cache) / built_kernels.name
        written = kept.stat().st_mtime_ns
        assert native.library() is not None
        assert native.build_kernels() == kept
        assert kept.stat().st_mtime_ns == written
        assert [kept] == list(empty_cache.iterdir())

    def test_damage_is_noticed(self, built_kernels: Path, empty_cache: Path) -> None:
        content = built_kernels.read_bytes()
        empty_cache.mkdir()
        (empty_cache / built_kernels.name).write_bytes(content[: len(content) // 2])
        assert native.library() is None

    def test_two_processes_at_once_replace_what_is_damaged(self, built_kernels: Path, empty_cache: Path) -> None:
        empty_cache.mkdir()
        (empty_cache / built_kernels.name).write_bytes(b"damaged")
        code = "from wan_vae.ops import native; native.build_kernels(); assert native.library() is not None"
        with ThreadPoolExecutor() as pool:
            runs = list(pool.map(lambda _: subprocess.run([sys.executable, "-c", code], check=False), range(2)))
        assert [run.returncode for run in runs] == [0, 0]
        assert native.library() is not None
        assert not list(empty_cache.glob("building-*"))

    def test_brings_no_second_openmp_runtime(self, built_kernels: Path) -> None:
        content = built_kernels.read_bytes()
        assert b"GOMP_parallel" in content or b"__kmpc_fork_call" in content
        assert not any(name in content for name in (b"libgomp", b"libomp", b"libiomp"))


def test_missing_compiler_is_named(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no-such-compiler.*install"):
        native.build_kernels()


def test_failing_compiler_is_quoted(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho cannot do that >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(UserError, match="cannot do that"):
        native.build_kernels()
    assert native.library() is None


def test_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    native.library.cache_clear()
    assert native.library() is None
    if COMPILER is not None:
        with pytest.raises(UserError, match="XDG_CACHE_HOME"):
            native.build_kernels()
    native.library.cache_clear()
