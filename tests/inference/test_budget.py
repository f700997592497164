"""Budgets as people write them."""

from pathlib import Path

import pytest
import torch

from wan_vae import UserError
from wan_vae.inference import budget
from wan_vae.inference.budget import format_bytes, parse_bytes, reports_free_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (5, 5),
        ("123", 123),
        ("4GiB", 4 * 2**30),
        ("4 gib", 4 * 2**30),
        ("4GB", 4 * 10**9),
        ("4G", 4 * 10**9),
        ("1.5MiB", 3 * 2**19),
        ("2kb", 2000),
        ("7B", 7),
        ("1TiB", 2**40),
    ],
)
def test_sizes(written: int | str, size: int) -> None:
    assert parse_bytes(written, CPU) == size


@pytest.mark.parametrize("written", ["", "much", "4 GiBs", "-1GiB", "4iB", "0", 0, -3, True, "1e9"])
def test_what_is_no_size(written: int | str) -> None:
    with pytest.raises(UserError, match=r"^The memory is .*(such as 4GiB|, or auto)"):
        parse_bytes(written, CPU)


@pytest.mark.skipif(not reports_free_memory(CPU), reason="this system does not tell what memory is free")
def test_auto_leaves_some() -> None:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    total = 1024 * int(next(line for line in lines if line.startswith("MemTotal")).split()[1])
    assert 0 < parse_bytes("auto", CPU) <= 0.8 * total


@pytest.mark.skipif(not reports_free_memory(CPU), reason="this system does not tell what memory is free")
@pytest.mark.parametrize(("limit", "left"), [("1000000", 700000), ("max", None), ("200000", 0)])
def test_auto_knows_the_limit_of_a_control_group(
    limit: str, left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        ("memory.max", limit),
        ("memory.current", "600000"),
        ("memory.stat", "anon 250000\ninactive_file 300000\nactive_file 50000\n"),
    ):
        (tmp_path / name).write_text(f"{text}\n")
    files = (tmp_path, "memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(budget, "_LIMITS", (files,))
    assert budget._left_to_this_group() == ([] if left is None else [left])
    if left is not None:
        assert parse_bytes("auto", CPU) == int(0.8 * left)


def test_auto_where_nobody_tells() -> None:
    with pytest.raises(UserError, match=r"auto.*meta"):
        parse_bytes("auto", torch.device("meta"))


@pytest.mark.parametrize(("size", "words"), [(5, "5B"), (2048, "2.00KiB"), (3 * 2**29, "1.50GiB"), (2**34, "16.0GiB")])
def test_in_words(size: int, words: str) -> None:
    assert format_bytes(size) == words
