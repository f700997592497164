"""Made-up results in, the right verdict out."""

from collections.abc import Sequence

import pytest

from experiments.residual_blocks.claims import Verdict, verdicts_of
from experiments.residual_blocks.cost import BUDGETS, Cost
from experiments.residual_blocks.identity import IdentityResult
from experiments.residual_blocks.networks import Network
from experiments.residual_blocks.probes import BlockProbe
from experiments.residual_blocks.settings import NetworkSection
from experiments.residual_blocks.study import Entry, Study
from experiments.residual_blocks.training import TrainingResult
from wan_vae.config import BLOCK_KINDS

STEPS = (50, 100)


def entry(kind: str, *, psnr: Sequence[float], sooner: float = 0.0, alive: Sequence[float] = (1.0, 1.0)) -> Entry:
    """Make up a network: its final PSNR and its share of gradient for each seed, its PSNR half way."""
    network = Network(kind=kind, blocks_per_level=1, width=4, common=NetworkSection(width=4, latent_channels=1))

    def blocks(share: float) -> tuple[BlockProbe, ...]:
        return tuple(BlockProbe(gradient=g, parameter_gradient=1.0, identity_distance=1.0) for g in (share, 1.0))

    results = tuple(
        TrainingResult(steps=STEPS, psnr=(sooner, end), start=blocks(share), end=blocks(share))
        for end, share in zip(psnr, alive, strict=True)
    )
    return Entry(network, Cost(1, 1, 30), 0.1, 0.001, results)


def made_up(
    *,
    skips: Sequence[Entry] | None = None,
    plain: Sequence[Entry] | None = None,
    equal: dict[str, Sequence[float]] | None = None,
    deep: dict[str, Sequence[float]] | None = None,
    errors: dict[str, Sequence[float]] | None = None,
) -> Study:
    same = (20.0, 20.2)
    by_depth = {kind: tuple(skips or [entry(kind, psnr=same)] * 3) for kind in BLOCK_KINDS}
    by_depth["plain"] = tuple(plain or [entry("plain", psnr=same)] * 3)
    for kind, psnr in (deep or {}).items():
        by_depth[kind] = (*by_depth[kind][:2], entry(kind, psnr=psnr))
    matched = {kind: entry(kind, psnr=(equal or {}).get(kind, same)) for kind in BLOCK_KINDS}
    identity = {
        kind: tuple(IdentityResult(start=1.0, end=error) for error in (errors or {}).get(kind, same))
        for kind in BLOCK_KINDS
    }
    return Study(by_depth, dict.fromkeys(BUDGETS, matched), identity, constant_psnr=15.0)


def verdict(study: Study, words: str) -> Verdict:
    [found] = [one for one in verdicts_of(study) if words in one.claim]
    return found


def outcome(study: Study, words: str) -> str:
    return verdict(study, words).outcome


@pytest.mark.parametrize(
    ("skips", "plain", "expected"),
    [
        ((0.9, 1.2), (0.01, 0.001), "held"),
        ((0.9, 1.2), (0.5, 0.7), "did not hold"),  # nothing to be kept alive
        ((0.05, 0.01), (0.01, 0.001), "did not hold"),
        ((0.9, 1.2), (0.5, 0.01), "unclear"),
        ((0.9, 0.01), (0.01, 0.001), "unclear"),
    ],
)
def test_gradients(skips: Sequence[float], plain: Sequence[float], expected: str) -> None:
    study = made_up(
        skips=[entry("wan", psnr=(20, 20), alive=skips)] * 3, plain=[entry("plain", psnr=(20, 20), alive=plain)] * 3
    )
    assert outcome(study, "alive, at initialization") == outcome(study, "alive, after training") == expected


@pytest.mark.parametrize(
    ("skips", "plain", "expected"),
    [
        ((21.0, 19.5), (15.0, 15.9), "held"),
        ((21.0, 21.0), (16.0, 20.5), "did not hold"),  # without skips it trains, too
        ((15.0, 14.0), (15.0, 15.5), "did not hold"),
        ((21.0, 21.0), (15.0, 20.0), "unclear"),
        ((21.0, 15.0), (15.0, 15.0), "unclear"),
    ],
)
def test_depth(skips: Sequence[float], plain: Sequence[float], expected: str) -> None:
    flat = (20.0, 20.0)
    study = made_up(
        skips=[entry("wan", psnr=flat), entry("wan", psnr=flat), entry("wan", psnr=skips)],
        plain=[entry("plain", psnr=flat), entry("plain", psnr=flat), entry("plain", psnr=plain)],
    )
    assert outcome(study, "Deeper") == expected


@pytest.mark.parametrize(
    ("sooner", "psnr", "expected"),
    [(20.5, (22.0, 22.0), "held"), (19.0, (20.5, 20.5), "did not hold"), (19.0, (18.0, 18.0), "did not hold")],
)
def test_convergence(sooner: float, psnr: Sequence[float], expected: str) -> None:
    study = made_up(skips=[entry("wan", psnr=psnr, sooner=sooner)] * 3)
    found = [one.outcome for one in verdicts_of(study) if "convergence" in one.claim]
    assert found == [expected] * 3


@pytest.mark.parametrize(
    ("skips", "expected"), [((0.1, 0.2), "held"), ((2.0, 3.0), "did not hold"), ((0.1, 1.5), "unclear")]
)
def test_identity(skips: Sequence[float], expected: str) -> None:
    study = made_up(errors={"wan": skips, "resnet": (0.1, 0.1), "plain": (1.0, 1.2)})
    found = verdict(study, "identity")
    assert found.outcome == expected
    assert "resnet: held" in found.others


RANKED = {"bottleneck": (24.0, 25.0), "resnet": (22.0, 23.0), "preact": (22.5, 22.5), "dense": (20.0, 21.0)}


def test_efficiency() -> None:
    assert outcome(made_up(equal=RANKED), "by compute") == "held"
    assert outcome(made_up(equal=RANKED | {"bottleneck": (22.0, 25.0)}), "by compute") == "unclear"
    # Parameters rank otherwise: there the bottleneck comes below.
    found = verdict(made_up(equal=RANKED), "by parameter")
    assert found.outcome == "did not hold"
    assert "2 (resnet over bottleneck, preact over bottleneck) the other way round" in found.figures
    assert "2 (resnet over dense, preact over dense) came out so" in found.figures


@pytest.mark.parametrize(
    ("preact", "expected"), [((24.0, 25.0), "held"), ((21.0, 25.0), "unclear"), ((19.0, 20.5), "did not hold")]
)
def test_advice(preact: Sequence[float], expected: str) -> None:
    study = made_up(deep={"preact": preact, "resnet": (21.0, 22.0), "dense": (18.0, 18.0)})
    assert outcome(study, "Pre-activation") == expected
    assert outcome(study, "Post-activation") == "unclear"


def test_seeds_that_never_get_there_are_counted() -> None:
    never = [
        one for one in verdicts_of(made_up(skips=[entry("wan", psnr=(18.0, 20.5))] * 3)) if "convergence" in one.claim
    ]
    assert "after 100 (100 to 100) steps (1 of 2 seeds never)" in never[0].figures
