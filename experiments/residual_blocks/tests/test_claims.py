"""Made-up results in, the right verdict out."""

from dataclasses import replace

import pytest

from experiments.residual_blocks.claims import order, verdicts_of
from experiments.residual_blocks.networks import Cost, Network
from experiments.residual_blocks.probes import BlockProbe
from experiments.residual_blocks.settings import Kind, NetworkSection
from experiments.residual_blocks.stacks import StackResult
from experiments.residual_blocks.study import ADVISED, Entry, Study
from experiments.residual_blocks.training import TrainingResult
from wan_vae.config import BLOCK_KINDS

COMMON = NetworkSection(
    patch=4, latent_channels=1, widths=dict.fromkeys(BLOCK_KINDS, (4, 4, 4)), bottleneck_ratio=4, dense_growth=2
)
SPREAD = (0.0, 0.1, 0.2, 0.3, 0.5)


def around(value: float) -> list[float]:
    """Return what five seeds might find."""
    return [value + one for one in SPREAD]


def entry(
    psnr: float = 20.0,
    *,
    kind: Kind = "wan",
    spread: float = 1.0,
    spike: float = 2.0,
    share: float = 1.0,
    cost: int = 100,
    fast: bool = False,
) -> Entry:
    """Make up a network; a fast one is as good after the first validation as after the last."""

    def blocks(seed: float) -> tuple[BlockProbe, ...]:
        return tuple(BlockProbe(gradient=one, identity_distance=1.0) for one in (share + seed, 1.0))

    results = tuple(
        TrainingResult(
            steps=(10, 20),
            psnr=(psnr + spread * one if fast else 5.0, psnr + spread * one),
            seconds=(1.0 + one / 10, 2.0 + one / 10),
            spike=spike + one,
            start=blocks(share * one),
            end=blocks(share * one),
        )
        for one in SPREAD
    )
    network = Network(kind=kind, units=1, width=4, common=COMMON)
    return Entry(network, Cost(1, cost), 0.001, 8, results)


def study(**changes: object) -> Study:
    """Make up a study in which all kinds are alike, but for some changes."""
    alike = Study(
        by_depth={kind: (entry(kind=kind),) * 3 for kind in BLOCK_KINDS},
        narrow=entry(kind="bottleneck"),
        by_rate={kind: {0.001: entry(kind=kind), 0.004: entry(kind=kind)} for kind in ("resnet", "preact")},
        small_set={kind: entry(kind=kind) for kind in ADVISED},
        stacks={
            task: {kind: tuple(StackResult(start=1, end=0.5 + one) for one in SPREAD) for kind in BLOCK_KINDS}
            for task in ("identity", "last", "every")
        },
        constant_psnr=15.0,
    )
    return replace(alike, **changes)


def at_depth(place: int, **entries: Entry) -> Study:
    """Change the networks of one depth."""
    alike = study().by_depth
    return study(
        by_depth={
            kind: tuple(entries.get(kind, one) if index == place else one for index, one in enumerate(row))
            for kind, row in alike.items()
        }
    )


def outcome(found: Study, words: str) -> str:
    [one] = [verdict for verdict in verdicts_of(found) if words in verdict.title]
    return one.outcome


def test_an_order_needs_more_than_the_level() -> None:
    assert order([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == -1
    assert order([6, 7, 8, 9, 4], [1, 2, 3, 5, 0]) == 1
    assert order([1, 2, 3, 4, 9], [5, 6, 7, 8, 10]) == 0  # 10 of 252 splits are as lopsided, doubled
    assert order([1, 2], [3, 4]) == 0  # two seeds never suffice
    assert order([1.0] * 5, [1.0] * 5) == 0
    assert order([float("inf")] * 5, [1, 2, 3, 4, 5]) == 1


@pytest.mark.parametrize(("psnr", "expected"), [(20.0, "held"), (19.5, "could not tell"), (18.5, "did not hold")])
def test_the_standard_block_suffices(psnr: float, expected: str) -> None:
    assert outcome(at_depth(0, resnet=entry(psnr)), "Shallow") == expected


def test_a_standard_block_that_never_trains_does_not_suffice() -> None:
    assert outcome(at_depth(0, **{kind: entry(14.0) for kind in ADVISED}), "Shallow") == "did not hold"


def test_stability() -> None:
    assert outcome(study(), "Medium") == "could not tell"
    calm, wild = entry(spike=2.0), entry(spike=9.0)
    assert outcome(at_depth(1, resnet=wild, preact=calm), "Medium") == "held"
    assert outcome(at_depth(1, resnet=calm, preact=wild), "Medium") == "did not hold"
    wide = entry(spread=9.0)
    assert outcome(at_depth(1, resnet=entry(spread=0.01, spike=9.0), preact=wide), "Medium") == "could not tell"
    failing = {"resnet": {0.004: entry(14.0)}, "preact": {0.004: entry()}}
    assert outcome(study(by_rate=failing), "Medium") == "held"


def deep(standard: Entry, bottleneck: Entry, narrow: Entry) -> Study:
    return replace(at_depth(-1 % 3, resnet=standard, bottleneck=bottleneck), narrow=narrow)


def test_bottlenecks() -> None:
    usual, cheap, dear = entry(), entry(cost=20, fast=True), entry(cost=90)
    assert outcome(deep(usual, dear, cheap), "bottlenecks") == "held"
    assert outcome(deep(usual, cheap, dear), "bottlenecks") == "held"
    assert outcome(deep(usual, dear, dear), "bottlenecks") == "did not hold"
    assert outcome(deep(usual, entry(14.0, cost=20, fast=True), dear), "bottlenecks") == "did not hold"
    assert outcome(deep(entry(14.0), cheap, cheap), "bottlenecks") == "could not tell"
    assert outcome(deep(usual, entry(cost=20), dear), "bottlenecks") == "could not tell"  # cheaper, yet no faster


def test_dense_for_small_sets() -> None:
    better = study().small_set | {"dense": entry(21.0)}
    assert outcome(study(small_set=better), "small data") == "held"
    assert outcome(study(small_set=study().small_set | {"dense": entry(19.0)}), "small data") == "did not hold"
    # As far ahead with much data.
    assert outcome(replace(at_depth(1, dense=entry(21.0)), small_set=better), "small data") == "could not tell"


def test_dense_for_reuse() -> None:
    stacks = study().stacks
    low = tuple(StackResult(start=1, end=(0.5 + one) / 9) for one in SPREAD)
    assert outcome(study(stacks=stacks | {"every": stacks["every"] | {"dense": low}}), "reused") == "held"
    assert outcome(study(stacks=stacks | {"last": stacks["last"] | {"dense": low}}), "reused") == "did not hold"


@pytest.mark.parametrize(
    ("skips", "plain", "expected"),
    [
        (1.0, 0.001, "held"),
        (1.0, 100.0, "held"),
        (1.0, 0.5, "did not hold"),  # nothing to be kept alive
        (0.0001, 0.001, "did not hold"),
        (0.001, 0.001, "could not tell"),
    ],
)
def test_gradients(skips: float, plain: float, expected: str) -> None:
    found = at_depth(2, wan=entry(share=skips), plain=entry(share=plain))
    assert outcome(found, "at initialization") == outcome(found, "after training") == expected


@pytest.mark.parametrize(
    ("skips", "plain", "expected"),
    [
        (20.0, 14.0, "held"),
        (15.8, 14.0, "did not hold"),
        (20.0, 20.0, "could not tell"),
        (20.0, 22.0, "did not hold"),
    ],
)
def test_depth(skips: float, plain: float, expected: str) -> None:
    assert outcome(at_depth(2, wan=entry(skips), plain=entry(plain)), "deeper") == expected


def test_convergence_is_judged_where_both_train() -> None:
    fast, slow, lost = entry(fast=True), entry(), entry(14.0)

    def rows(*pairs: tuple[Entry, Entry]) -> Study:
        skips, plain = zip(*pairs, strict=True)
        return study(by_depth=study().by_depth | {"wan": skips, "plain": plain})

    assert outcome(rows((fast, slow), (fast, slow), (fast, lost)), "convergence") == "held"
    assert outcome(rows((fast, slow), (fast, slow), (slow, slow)), "convergence") == "could not tell"
    assert outcome(rows((fast, slow), (slow, fast), (fast, lost)), "convergence") == "did not hold"
    assert outcome(rows((fast, lost), (fast, lost), (fast, lost)), "convergence") == "could not tell"


def test_identity() -> None:
    errors = {kind: tuple(StackResult(start=1, end=one) for one in around(0.1)) for kind in BLOCK_KINDS}
    large = tuple(StackResult(start=1, end=one) for one in around(1.0))
    stacks = study().stacks
    assert outcome(study(stacks=stacks | {"identity": errors | {"plain": large}}), "identity") == "held"
    assert outcome(study(stacks=stacks | {"identity": errors | {"wan": large}}), "identity") == "did not hold"


def test_ranks() -> None:
    ranked = at_depth(1, resnet=entry(24), preact=entry(24), bottleneck=entry(22), dense=entry(22))
    assert outcome(ranked, "parameters") == "held"
    alike = at_depth(1, resnet=entry(24), preact=entry(24), bottleneck=entry(24), dense=entry(22))
    assert outcome(alike, "parameters") == "could not tell"
    assert outcome(at_depth(1, bottleneck=entry(24)), "parameters") == "did not hold"
    costs = {"bottleneck": 1, "resnet": 100, "preact": 100, "dense": 999}
    by_cost = at_depth(1, **{kind: entry(cost=cost) for kind, cost in costs.items()})
    assert outcome(by_cost, "by multiply-adds") == "held"
    assert outcome(by_cost, "by CPU seconds") == "could not tell"
