"""How the compiled kernels are built, when, and which of the cached libraries are loaded."""

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from tests.ops.cpu_cases import COMPILER, needs_compiler
from wan_vae.errors import UserError
from wan_vae.ops.cpu import build
from wan_vae.ops.cpu.build import build_kernels, ensure_kernels, library, set_kernel_building

needs_file_modes = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no file modes")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A process that has not looked for kernels yet, may build them, and will find none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("WAN_VAE_BUILD_KERNELS")
    for name in ("_ensured", "_may_build"):
        monkeypatch.setattr(build, name, None)
    build._warn_once.cache_clear()
    library.cache_clear()
    yield tmp_path / "wan_vae"
    library.cache_clear()


@pytest.fixture
def cached(built_kernels: Path, empty_cache: Path) -> Path:
    """The compiled library, in that cache."""
    return shutil.copytree(built_kernels.parent, empty_cache) / built_kernels.name


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, built_kernels: Path) -> list[Path]:
    """The builds of this process, each replaced by a copy of what was built before."""
    folders: list[Path] = []

    def copy(compiler: list[str], folder: Path) -> Path:
        folders.append(folder)
        return Path(shutil.copy(built_kernels, folder / "kernels.so"))

    monkeypatch.setattr(build, "_compile", copy)
    return folders


def run_at_once(code: str, count: int) -> list[subprocess.CompletedProcess[str]]:
    """Run code in several processes at once."""

    def run(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(run, range(count)))


@needs_compiler
class TestBuild:
    def test_library_compiles_nothing(self, empty_cache: Path) -> None:
        assert library() is None
        assert not empty_cache.exists()

    def test_build_kernels_finds_what_was_built(self, cached: Path) -> None:
        written = cached.stat().st_mtime_ns
        before = set(cached.parent.iterdir())
        assert library() is not None
        assert build_kernels() == cached
        assert cached.stat().st_mtime_ns == written
        assert set(cached.parent.iterdir()) == before

    def test_library_does_not_load_a_truncated_file(self, cached: Path) -> None:
        cached.write_bytes(cached.read_bytes()[: cached.stat().st_size // 2])
        assert library() is None

    @pytest.mark.slow
    def test_processes_at_once_replace_a_damaged_file_with_one_build(self, cached: Path) -> None:
        cached.write_bytes(b"damaged")
        code = (
            "import logging; logging.basicConfig(level='INFO')\n"
            "from wan_vae.ops.cpu.build import build_kernels, library\n"
            "build_kernels(); assert library() is not None"
        )
        runs = run_at_once(code, 3)
        assert [run.returncode for run in runs] == [0, 0, 0], runs
        assert sum("Compiling the CPU kernels" in run.stderr for run in runs) == 1
        assert library() is not None
        assert not list(cached.parent.glob("building-*"))

    def test_the_library_brings_no_second_openmp_runtime(self, built_kernels: Path) -> None:
        content = built_kernels.read_bytes()
        assert b"GOMP_parallel" in content or b"__kmpc_fork_call" in content
        assert not any(name in content for name in (b"libgomp", b"libomp", b"libiomp"))

    def test_a_group_writable_umask_yields_a_trusted_library(self, empty_cache: Path, builds: list[Path]) -> None:
        before = os.umask(0o002)
        try:
            build_kernels()
        finally:
            os.umask(before)
        assert library() is not None

    def test_a_lock_that_is_never_released_is_an_error(
        self, empty_cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        empty_cache.mkdir()
        monkeypatch.setattr(build, "_TIMEOUT", 0.2)
        with build._locked(empty_cache / "build.lock"), pytest.raises(UserError, match=r"build\.lock for 0\.2 s"):
            build_kernels()
        assert build_kernels().exists()

    def test_without_file_locks_kernels_are_built(
        self, empty_cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(build, "fcntl", None)
        assert build_kernels().exists()


@needs_compiler
@needs_file_modes
class TestTrust:
    @pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777])
    def test_library_from_a_folder_that_others_can_write_to_is_not_loaded(
        self, cached: Path, mode: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        cached.parent.chmod(mode)
        assert library() is None
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert f"{cached.parent} has mode {mode:04o}" in caplog.text
        assert "chmod go-w" in caplog.text
        with pytest.raises(UserError, match="chmod go-w"):
            build_kernels()
        cached.parent.chmod(0o755)
        library.cache_clear()
        assert library() is not None

    def test_library_that_others_can_write_to_is_not_loaded_but_replaced(
        self, cached: Path, builds: list[Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        cached.chmod(0o775)
        assert library() is None
        assert f"{cached} has mode 0775" in caplog.text
        ensure_kernels()
        assert len(builds) == 1
        assert library() is not None

    def test_library_of_another_user_is_not_loaded(self, cached: Path, caplog: pytest.LogCaptureFixture) -> None:
        owner = cached.stat().st_uid
        with mock.patch.object(os, "geteuid", return_value=owner + 1):
            if owner == 0:  # whose files everybody trusts
                os.chown(cached.parent, 4711, -1)
                owner = 4711
            assert library() is None
            assert f"belongs to user {owner}; it must belong to user" in caplog.text
            with pytest.raises(UserError, match="belongs to user"):
                build_kernels()

    def test_a_sticky_folder_above_is_trusted(self, cached: Path) -> None:
        cached.parents[1].chmod(0o1777)
        assert library() is not None

    def test_a_system_without_owners_loads_the_library(self, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "geteuid")
        cached.parent.chmod(0o777)
        assert library() is not None


@needs_compiler
class TestEnsure:
    def test_builds_once_and_logs_one_line(
        self, empty_cache: Path, builds: list[Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        ensure_kernels()
        ensure_kernels()
        assert len(builds) == 1
        assert library() is not None
        assert [record.message for record in caplog.records] == [
            "Compiling the CPU kernels, once for this machine (about 5 s)"
        ]

    def test_existing_kernels_are_not_built_again(self, cached: Path, builds: list[Path]) -> None:
        ensure_kernels()
        assert builds == []

    def test_threads_at_once_build_once(self, empty_cache: Path, builds: list[Path]) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: ensure_kernels(), range(8)))
        assert len(builds) == 1

    @pytest.mark.slow
    def test_processes_at_once_build_once(self, empty_cache: Path) -> None:
        code = (
            "import logging; logging.basicConfig(level='INFO')\n"
            "from wan_vae.ops.cpu.build import ensure_kernels, library\n"
            "ensure_kernels(); assert library() is not None"
        )
        runs = run_at_once(code, 3)
        assert [run.returncode for run in runs] == [0, 0, 0], runs
        assert sum(run.stderr.count("Compiling the CPU kernels") for run in runs) == 1

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    def test_a_forked_process_builds_while_a_thread_of_its_parent_held_the_lock(
        self, empty_cache: Path, builds: list[Path]
    ) -> None:
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with build._lock:
                held.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            try:
                ensure_kernels()
            finally:
                os._exit(0 if library() is not None else 1)
        done.set()
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    @pytest.mark.parametrize("value", ["0", "off", "False"])
    def test_the_environment_turns_building_off_and_uses_what_exists(
        self, empty_cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, built_kernels: Path, value: str
    ) -> None:
        monkeypatch.setenv("WAN_VAE_BUILD_KERNELS", value)
        ensure_kernels()
        assert (builds, empty_cache.exists()) == ([], False)
        shutil.copytree(built_kernels.parent, empty_cache)
        library.cache_clear()
        ensure_kernels()
        assert library() is not None

    def test_set_kernel_building_overrides_the_environment(
        self, empty_cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_kernel_building(False)
        ensure_kernels()
        assert builds == []
        monkeypatch.setenv("WAN_VAE_BUILD_KERNELS", "0")
        with pytest.raises(UserError, match="enabled is '0'; it must be True or False"):
            set_kernel_building("0")  # type: ignore[arg-type]
        set_kernel_building(True)
        ensure_kernels()
        assert len(builds) == 1


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda _: "no-such-compiler", "There is no C++ compiler (no-such-compiler); install g++, or set CXX to one."),
        (
            lambda folder: failing_compiler(folder),
            "cannot compile the kernels (cannot do that); install a recent g++, or set CXX to one.",
        ),
    ],
)
def test_ensure_kernels_without_a_compiler_warns_once(
    prepare: Callable[[Path], str],
    reason: str,
    empty_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CXX", prepare(tmp_path))
    ensure_kernels()
    ensure_kernels()
    [record] = caplog.records
    assert (record.name, record.levelno) == ("wan_vae", logging.WARNING)
    assert record.message.startswith("CPU inference runs without the compiled kernels")
    assert record.message.endswith(reason)


def failing_compiler(folder: Path) -> str:
    compiler = folder / "compiler"
    compiler.write_text("#!/bin/sh\necho cannot do that >&2\nexit 1\n")
    compiler.chmod(0o755)
    return str(compiler)


def test_build_kernels_names_a_missing_compiler(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no-such-compiler.*install"):
        build_kernels()


def test_build_kernels_quotes_a_failing_compiler(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", failing_compiler(tmp_path))
    with pytest.raises(UserError, match="cannot do that"):
        build_kernels()
    assert library() is None


def test_build_kernels_names_a_compiler_that_does_not_end(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nexec sleep 60\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "_TIMEOUT", 0.2)
    with pytest.raises(UserError, match="timed out"):
        build_kernels()


def test_build_kernels_names_an_unwritable_cache(empty_cache: Path) -> None:
    empty_cache.touch()
    assert library() is None
    if COMPILER is not None:
        with pytest.raises(UserError, match="XDG_CACHE_HOME"):
            build_kernels()


def test_without_a_home_there_are_no_kernels(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    with mock.patch.object(Path, "home", side_effect=RuntimeError("no home")):
        assert library() is None
        with pytest.raises(UserError, match="XDG_CACHE_HOME"):
            build_kernels()
