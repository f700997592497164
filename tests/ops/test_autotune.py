import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from wan_vae.ops import autotune as selection
from wan_vae.ops.autotune import Selection, _may_measure, describe, fastest, is_open, measuring

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
    own, candidates = Selection(path), ways()
    assert own.fastest("key", candidates, CPU) == "fast"
    assert all(way.calls >= 2 for way in candidates.values())
    before = calls(candidates)
    assert own.fastest("key", candidates, CPU) == "fast"
    assert calls(candidates) == before
    own.fastest("another key", candidates, CPU)
    assert calls(candidates) > before


def test_another_process_knows(path: Path) -> None:
    Selection(path).fastest("key", ways(), CPU)
    candidates = ways()
    assert Selection(path).fastest("key", candidates, CPU) == "fast"
    assert calls(candidates) == 0


def test_other_candidates_are_measured(path: Path) -> None:
    Selection(path).fastest("key", ways(), CPU)
    candidates = {"fast": Way(0.002), "new": Way()}
    assert Selection(path).fastest("key", candidates, CPU) == "new"


def test_what_other_processes_found_meanwhile_is_kept(path: Path) -> None:
    one, other = Selection(path), Selection(path)
    one.fastest("first", ways(), CPU)
    other.fastest("second", ways(), CPU)
    one.fastest("third", ways(), CPU)
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 3
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_one_candidate_need_not_be_measured(path: Path) -> None:
    candidates = {"only": Way()}
    assert Selection(path).fastest("key", candidates, CPU) == "only"
    assert calls(candidates) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b'{"key": 3}', b"\xff\xfe\x00", b'{"key: slow or fast or slower": 3}'],
)
def test_a_damaged_file_is_replaced(content: bytes, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    own = Selection(path)
    assert own.fastest("key", ways(), CPU) == "fast"
    assert own.fastest("another", ways(), CPU) == "fast"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.text
    assert set(json.loads(path.read_text(encoding="utf-8")).values()) == {"fast"}


def test_a_name_that_is_no_candidate_is_not_taken(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text('{"key: slow or fast or slower": "unheard of"}', encoding="utf-8")
    assert Selection(path).fastest("key", ways(), CPU) == "fast"


@pytest.mark.parametrize("obstacle", ["file for folder", "folder for file"])
def test_a_file_that_cannot_be_written_is_done_without(
    obstacle: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if obstacle == "file for folder":
        path.parent.parent.mkdir()
        path.parent.touch()
    else:
        (path / "in the way").mkdir(parents=True)
    own, candidates = Selection(path), ways()
    assert own.fastest("key", candidates, CPU) == "fast"
    before = calls(candidates)
    assert own.fastest("key", candidates, CPU) == "fast"
    assert calls(candidates) == before
    assert own.fastest("another", ways(), CPU) == "fast"
    assert len(caplog.records) == 1


def test_candidates_that_fail_are_left_out(path: Path) -> None:
    candidates = {"broken": Way(error=RuntimeError("no kernel image")), **ways()}
    assert Selection(path).fastest("key", candidates, CPU) == "fast"
    assert candidates["broken"].calls == 1


def test_one_that_works_is_enough(path: Path) -> None:
    candidates = {"broken": Way(error=RuntimeError("no kernel image")), "works": Way()}
    assert Selection(path).fastest("key", candidates, CPU) == "works"


def test_the_first_error_is_raised_if_none_works(path: Path) -> None:
    candidates = {"one": Way(error=RuntimeError("no kernel image")), "other": Way(error=ValueError("other"))}
    with pytest.raises(RuntimeError, match="no kernel image"):
        Selection(path).fastest("key", candidates, CPU)
    assert not path.exists()


def test_a_choice_that_lack_of_memory_made_is_not_kept_on_disk(path: Path) -> None:
    candidates = {"large": Way(error=torch.cuda.OutOfMemoryError("out of memory")), **ways()}
    own = Selection(path)
    assert own.fastest("key", candidates, CPU) == "fast"
    before = calls(candidates)
    assert own.fastest("key", candidates, CPU) == "fast"
    assert calls(candidates) == before
    assert not path.exists()


def test_nothing_is_measured_while_a_graph_is_captured(path: Path) -> None:
    own, candidates = Selection(path), ways()
    with mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True):
        assert own.fastest("key", candidates, GPU) == "slow"
    assert calls(candidates) == 0
    assert own.fastest("key", candidates, CPU) == "fast"
    with mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True):
        assert own.fastest("key", candidates, GPU) == "fast"


def test_a_candidate_may_choose_itself(path: Path) -> None:
    own, inner = Selection(path), ways()

    def choosing() -> Tensor:
        return inner[own.fastest("inner", inner, CPU)]()

    candidates: dict[str, Callable[[], Tensor]] = {"slow": Way(0.004), "choosing": choosing}
    assert own.fastest("outer", candidates, CPU) == "choosing"


def test_the_users_cache_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    selection._selection.cache_clear()
    try:
        assert fastest("key", ways(), CPU) == "fast"
    finally:
        selection._selection.cache_clear()
    assert "fast" in (tmp_path / "wan_vae" / "kernels.json").read_text(encoding="utf-8")


def test_a_user_without_a_home_is_served(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    selection._selection.cache_clear()
    try:
        assert fastest("key", ways(), CPU) == "fast"
    finally:
        selection._selection.cache_clear()
    assert len(caplog.records) == 1


def test_a_key_tells_what_matters() -> None:
    x = torch.zeros(1, 2, 3, dtype=torch.bfloat16)
    assert describe("conv", CPU, x, None, padding=(1, 1)) == (
        f"conv, 1x2x3 bfloat16, none, padding (1, 1), cpu, torch {torch.__version__}"
    )


def test_nothing_is_measured_unasked(path: Path) -> None:
    own, candidates = Selection(path), ways()
    token = _may_measure.set(False)
    assert own.fastest("key", candidates, CPU) == "slow"
    assert calls(candidates) == 0
    assert not own.knows("key")
    _may_measure.reset(token)
    own.fastest("key", candidates, CPU)
    assert own.knows("key")
    assert not own.knows("ke")


def test_a_key_is_open_where_it_would_be_measured() -> None:
    assert is_open("never heard of")
    token = _may_measure.set(False)
    assert not is_open("never heard of")
    _may_measure.reset(token)


def test_a_wrong_result_is_left_out_however_fast(path: Path) -> None:
    right = torch.linspace(-1, 1, 100)

    def slow() -> Tensor:
        time.sleep(0.002)
        return right

    candidates = {"right": slow, "wrong": lambda: right + 0.1, "rounded": lambda: right.clone() * (1 + 1e-4)}
    assert Selection(path).fastest("key", candidates, CPU) == "rounded"
