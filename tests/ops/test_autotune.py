import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from wan_vae.ops import autotune
from wan_vae.ops.autotune import TuningCache, _may_measure, cache_folder, describe, is_tunable, measuring, run_fastest
from wan_vae.ops.precision import tf32

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Way:
    """A candidate that takes a given time, or fails."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds = seconds
        self.error = error
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        if self.error is not None:
            raise self.error
        time.sleep(self.seconds)
        return torch.zeros(1)


def ways() -> dict[str, Way]:
    return {"slow": Way(0.004), "fast": Way(0.0005), "slower": Way(0.008)}


def calls(candidates: dict[str, Way]) -> int:
    return sum(way.calls for way in candidates.values())


@pytest.fixture(autouse=True)
def _measuring() -> Iterator[None]:
    with measuring():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "wan_vae" / "kernels.json"


def test_the_fastest_is_named_and_measured_once(path: Path) -> None:
    own, candidates = TuningCache(path), ways()
    assert own.fastest("key", candidates, CPU) == "fast"
    assert all(way.calls >= 2 for way in candidates.values())
    before = calls(candidates)
    assert own.fastest("key", candidates, CPU) == "fast"
    assert calls(candidates) == before
    own.fastest("another key", candidates, CPU)
    assert calls(candidates) > before


def test_fastest_reads_what_another_process_measured(path: Path) -> None:
    TuningCache(path).fastest("key", ways(), CPU)
    candidates = ways()
    assert TuningCache(path).fastest("key", candidates, CPU) == "fast"
    assert calls(candidates) == 0


def test_other_candidates_are_measured(path: Path) -> None:
    TuningCache(path).fastest("key", ways(), CPU)
    candidates = {"fast": Way(0.002), "new": Way()}
    assert TuningCache(path).fastest("key", candidates, CPU) == "new"


def test_write_keeps_the_entries_of_other_processes(path: Path) -> None:
    one, other = TuningCache(path), TuningCache(path)
    one.fastest("first", ways(), CPU)
    other.fastest("second", ways(), CPU)
    one.fastest("third", ways(), CPU)
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 3
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_one_candidate_need_not_be_measured(path: Path) -> None:
    candidates = {"only": Way()}
    assert TuningCache(path).fastest("key", candidates, CPU) == "only"
    assert calls(candidates) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b'{"key": 3}', b"\xff\xfe\x00", b'{"key: slow or fast or slower": 3}'],
)
def test_a_damaged_file_is_replaced(content: bytes, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    own = TuningCache(path)
    assert own.fastest("key", ways(), CPU) == "fast"
    assert own.fastest("another", ways(), CPU) == "fast"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.text
    assert set(json.loads(path.read_text(encoding="utf-8")).values()) == {"fast"}


def test_an_unknown_name_in_the_file_is_measured_again(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text('{"key: slow or fast or slower": "unheard of"}', encoding="utf-8")
    assert TuningCache(path).fastest("key", ways(), CPU) == "fast"


@pytest.mark.parametrize("obstacle", ["file for folder", "folder for file"])
def test_fastest_with_an_unwritable_file_warns_once(
    obstacle: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if obstacle == "file for folder":
        path.parent.parent.mkdir()
        path.parent.touch()
    else:
        (path / "in the way").mkdir(parents=True)
    own, candidates = TuningCache(path), ways()
    assert own.fastest("key", candidates, CPU) == "fast"
    before = calls(candidates)
    assert own.fastest("key", candidates, CPU) == "fast"
    assert calls(candidates) == before
    assert own.fastest("another", ways(), CPU) == "fast"
    assert len(caplog.records) == 1


def test_candidates_that_fail_are_left_out(path: Path) -> None:
    candidates = {"broken": Way(error=RuntimeError("no kernel image")), **ways()}
    assert TuningCache(path).fastest("key", candidates, CPU) == "fast"
    assert candidates["broken"].calls == 1


def test_one_that_works_is_enough(path: Path) -> None:
    candidates = {"broken": Way(error=RuntimeError("no kernel image")), "works": Way()}
    assert TuningCache(path).fastest("key", candidates, CPU) == "works"


def test_the_first_error_is_raised_if_none_works(path: Path) -> None:
    candidates = {"one": Way(error=RuntimeError("no kernel image")), "other": Way(error=ValueError("other"))}
    with pytest.raises(RuntimeError, match="no kernel image"):
        TuningCache(path).fastest("key", candidates, CPU)
    assert not path.exists()


def test_a_choice_after_running_out_of_memory_is_not_written(path: Path) -> None:
    candidates = {"large": Way(error=torch.cuda.OutOfMemoryError("out of memory")), **ways()}
    own = TuningCache(path)
    assert own.fastest("key", candidates, CPU) == "fast"
    before = calls(candidates)
    assert own.fastest("key", candidates, CPU) == "fast"
    assert calls(candidates) == before
    assert not path.exists()


def test_nothing_is_measured_while_a_graph_is_captured(path: Path) -> None:
    own, candidates = TuningCache(path), ways()
    with mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True):
        assert own.fastest("key", candidates, GPU) == "slow"
    assert calls(candidates) == 0
    assert own.fastest("key", candidates, CPU) == "fast"
    with mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True):
        assert own.fastest("key", candidates, GPU) == "fast"


def test_a_candidate_may_choose_itself(path: Path) -> None:
    own, inner = TuningCache(path), ways()

    def choosing() -> Tensor:
        return inner[own.fastest("inner", inner, CPU)]()

    candidates: dict[str, Callable[[], Tensor]] = {"slow": Way(0.004), "choosing": choosing}
    assert own.fastest("outer", candidates, CPU) == "choosing"


def test_fastest_writes_to_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotune._tuning_cache.cache_clear()
    try:
        candidates = ways()
        run_fastest("key", candidates, CPU)
        before = candidates["fast"].calls
        run_fastest("key", candidates, CPU)
        assert candidates["fast"].calls == before + 1
    finally:
        autotune._tuning_cache.cache_clear()
    assert "fast" in (tmp_path / "wan_vae" / "kernels.json").read_text(encoding="utf-8")


def test_fastest_without_a_home_warns_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    autotune._tuning_cache.cache_clear()
    try:
        candidates = ways()
        run_fastest("key", candidates, CPU)
        before = candidates["fast"].calls
        run_fastest("key", candidates, CPU)
        assert candidates["fast"].calls == before + 1
    finally:
        autotune._tuning_cache.cache_clear()
    assert len(caplog.records) == 1


def test_describe_names_operands_options_device_and_version() -> None:
    x = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    assert describe("conv", CPU, x, None, padding=(1, 1)) == (
        f"conv, 1x2x3 bfloat16, none, padding (1, 1), cpu, torch {torch.__version__}"
    )


def test_a_choice_that_fails_later_is_replaced_by_the_first(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own, candidates = TuningCache(path), ways()
    assert own.fastest("key", candidates, CPU) == "fast"
    candidates["fast"].error = RuntimeError("no kernel image\nfor this GPU")
    before = candidates["slow"].calls
    for process in (own, TuningCache(path)):
        process.run("key", candidates, CPU)
        process.run("key", candidates, CPU)
    assert candidates["slow"].calls == before + 4
    (record,) = caplog.records
    assert record.message == "fast fails for key, so slow computes it from now on: no kernel image"


def test_a_choice_that_fails_together_with_the_first_is_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own, candidates = TuningCache(path), ways()
    assert own.fastest("key", candidates, CPU) == "fast"
    before = path.read_bytes()
    for candidate in candidates.values():
        candidate.error = RuntimeError("an error of an earlier kernel")
    with pytest.raises(RuntimeError, match="earlier kernel"):
        own.run("key", candidates, CPU)
    assert path.read_bytes() == before
    assert own.fastest("key", candidates, CPU) == "fast"
    assert not caplog.records


def test_run_raises_what_the_first_raises_and_full_memory(path: Path) -> None:
    own, candidates = TuningCache(path), ways() | {"slow": Way(error=ZeroDivisionError())}
    token = _may_measure.set(False)
    with pytest.raises(ZeroDivisionError):
        own.run("key", candidates, CPU)
    _may_measure.reset(token)
    own, candidates = TuningCache(path), ways()
    assert own.fastest("key", candidates, CPU) == "fast"
    candidates["fast"].error = torch.OutOfMemoryError()
    with pytest.raises(torch.OutOfMemoryError):
        own.run("key", candidates, CPU)
    assert own.fastest("key", candidates, CPU) == "fast"


def test_describe_on_a_gpu_names_the_versions_of_its_libraries() -> None:
    described = {"get_device_name": "H100"}
    autotune._cuda_versions.cache_clear()
    with (
        mock.patch.multiple(torch.cuda, **{name: mock.Mock(return_value=value) for name, value in described.items()}),
        mock.patch.object(torch.backends.cudnn, "version", return_value=91002),
        mock.patch.object(torch._C, "_cuda_getDriverVersion", return_value=13000, create=True),
    ):
        key = describe("conv", GPU, torch.zeros(1))
    autotune._cuda_versions.cache_clear()
    assert key.startswith(f"conv, 1 float32, H100, torch {torch.__version__}, cuDNN 91002, Triton ")
    assert key.endswith(", driver for CUDA 13000")


def test_fastest_outside_of_measuring_returns_the_first(path: Path) -> None:
    own, candidates = TuningCache(path), ways()
    token = _may_measure.set(False)
    assert own.fastest("key", candidates, CPU) == "slow"
    assert calls(candidates) == 0
    assert not own.knows_faster("key")
    _may_measure.reset(token)
    own.fastest("key", candidates, CPU)
    assert own.knows_faster("key")
    assert not own.knows_faster("ke")


def test_knows_faster_is_false_where_the_first_won(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text('{"key: slow or fast": "slow", "other: slow or fast": "fast"}', encoding="utf-8")
    assert not TuningCache(path).knows_faster("key")
    assert TuningCache(path).knows_faster("other")


def test_is_tunable_is_true_only_while_measuring_or_known() -> None:
    assert is_tunable("never heard of")
    token = _may_measure.set(False)
    assert not is_tunable("never heard of")
    _may_measure.reset(token)


def test_a_wrong_result_is_left_out_however_fast(path: Path) -> None:
    right = torch.linspace(-1, 1, 100)

    def slow() -> Tensor:
        time.sleep(0.002)
        return right

    candidates = {"right": slow, "wrong": lambda: right + 0.1, "rounded": lambda: right.clone() * (1 + 5e-5)}
    assert TuningCache(path).fastest("key", candidates, CPU) == "rounded"


def summed_on_tensor_cores(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b` with float32 sums of 16 products, each cut to 23 bits instead of rounded."""
    total = torch.zeros(a.shape[0], b.shape[1])
    for start in range(0, a.shape[1], 16):
        part = a[:, start : start + 16].double() @ b[start : start + 16].double() + total.double()
        mantissa, exponent = torch.frexp(part)
        total = torch.ldexp(torch.trunc(mantissa * 2**23) / 2**23, exponent).float()
    return total


def rounded_to_tf32(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2**11) / 2**11, exponent)


def products(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, generator=generator).to(dtype).float() for size in ((32, count), (count, 48)))
    return a, b / count**0.5


@pytest.mark.parametrize("count", [27 * 96, 27 * 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_tensor_cores_agree_and_wrong_kernels_do_not(dtype: torch.dtype, count: int) -> None:
    a, b = products(count, dtype)
    expected = (a.double() @ b.double()).to(dtype)
    assert autotune._agree((a @ b).to(dtype), expected)
    found = summed_on_tensor_cores(a, b).to(dtype)
    assert (found.double() - a.double() @ b.double()).abs().max() > 0
    assert autotune._agree(found, expected)
    missing = a.clone()
    missing[:, : count // 27] = 0  # a tap
    pixel = expected.clone()
    pixel[-1, -1] += 0.1 * expected.abs().amax()
    for wrong in (missing @ b, a.roll(1, dims=0) @ b, pixel, expected * torch.nan, expected[:, :1]):
        assert not autotune._agree(wrong.to(dtype), expected)


def test_operands_rounded_to_tf32_agree_only_where_that_is_allowed() -> None:
    a, b = products(27 * 384, torch.float32)
    found, expected = rounded_to_tf32(a) @ rounded_to_tf32(b), a @ b
    with tf32(True):
        assert autotune._agree(found, expected)
        assert not autotune._agree(found.roll(1, dims=0), expected)
    assert not autotune._agree(found, expected)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "wan_vae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "wan_vae"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no file modes")
def test_cache_folder_made_here_is_trusted_with_kernels(path: Path) -> None:
    before = os.umask(0o002)
    try:
        TuningCache(path).fastest("key", ways(), CPU)
    finally:
        os.umask(before)
    assert path.parent.stat().st_mode & 0o022 == 0
