"""A few seeded attacks of every class, and those that once went wrong."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.robustness.attacks import ATTACKS, Samples
from tests.robustness.runner import Case, Outcome, Runner, fault
from tests.robustness.samples import make_samples

SEEDS = 17  # of each class: over 300 inputs
MENDED = [
    *(("images, extreme numbers", seed) for seed in (14, 20)),  # one of nine frames of an AVIF without a word
    *(("images, ranges moved", seed) for seed in (15, 17, 18)),  # the same, also of a GIF
    ("videos, ranges moved", 9),  # seven of nine frames of a WebM without a word
    ("odd files and places", 1),  # a link in a circle: traceback
    *(("odd files and places", seed) for seed in (2, 10)),  # a named pipe as clip: waits for ever
]


class Range(NamedTuple):
    samples: Samples
    folder: Path
    runner: Runner

    def attack(self, kind: str, seed: int) -> str | None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        case = ATTACKS[kind](Random(f"{kind} {seed}"), self.samples, self.folder)
        ended = self.runner.run(case)
        wrong = fault(case, ended)
        return wrong and f"seed {seed}: {wrong}: {case.arguments}: {ended.err[-500:]!r}"


@pytest.fixture(scope="module")
def range_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Range]:
    place, folder = tmp_path_factory.mktemp("samples"), tmp_path_factory.mktemp("case")
    with Runner(folder) as runner:
        yield Range(make_samples(place), folder, runner)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTACKS)
def test_attack_of_a_class_ends_whole_or_in_a_sentence(range_: Range, kind: str) -> None:
    wrong = [found for seed in range(SEEDS) if (found := range_.attack(kind, seed)) is not None]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("kind", "seed"), MENDED)
def test_attack_that_once_went_wrong_ends_whole_or_in_a_sentence(range_: Range, kind: str, seed: int) -> None:
    assert range_.attack(kind, seed) is None


@pytest.mark.parametrize(
    ("code", "err", "growth", "expected"),
    [
        (None, "", 0, "hangs"),
        (-9, "", 0, "exit code -9"),
        (1, "Traceback (most recent call last):\n", 0, "traceback"),
        (2, "", 0, "no sentence"),
        (2, "wan-vae: a\x1b[2J.\n", 0, "control"),
        (2, "wan-vae: it is damaged.\n", 1 << 30, "takes 1024 MiB"),
        (0, "", 0, "8 of 9 frames"),
    ],
)
def test_fault_of_a_bad_end_names_it(code: int | None, err: str, growth: int, expected: str) -> None:
    found = fault(Case(["info"], frames=9), Outcome(code, '{"frames": 8}', err, growth, 1.0))
    assert found is not None
    assert expected in found
