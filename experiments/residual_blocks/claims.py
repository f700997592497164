"""What the source material claims, and whether it held.

Each claim is put as a comparison of measured figures, one for each seed. Two networks differ where their ranges over
the seeds do not overlap; with three seeds, chance alone separates equal ones in one comparison of ten. The verdict on
skips is that of `wan` against `plain`, which are the same block with and without its skip; what the same rule says of
the other kinds, which differ from `plain` in their norms, too, stands beside it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean
from typing import Literal

from experiments.residual_blocks.cost import Budget
from experiments.residual_blocks.study import Entry, Study

Outcome = Literal["held", "did not hold", "unclear"]
FADED = 0.1  # of a gradient, where less than this share of it reaches the first block
LEARNED = 1.0  # dB above a guess that looks at nothing; a network that ends there has trained
SKIPS = ("wan", "resnet", "preact", "bottleneck", "dense")
ADVISED = ("resnet", "bottleneck", "preact", "dense")
HIGH, MEDIUM, LOW = 3, 2, 1
EFFICIENCY: dict[Budget, dict[str, int]] = {
    "multiply_adds": {"bottleneck": HIGH, "resnet": MEDIUM, "preact": MEDIUM, "dense": LOW},
    "parameters": {"resnet": HIGH, "preact": HIGH, "bottleneck": MEDIUM, "dense": MEDIUM},
}


@dataclass(frozen=True)
class Verdict:
    """Whether a claim held.

    Attributes:
        claim: In the words of the source, as far as they can be measured.
        outcome: "unclear" where the spread over seeds does not allow to tell.
        figures: What was measured, as a sentence.
        others: What the same rule says of the other kinds; "" where that means nothing.
    """

    claim: str
    outcome: Outcome
    figures: str
    others: str = ""


def verdicts_of(study: Study) -> list[Verdict]:
    """Judge all claims."""
    depths = range(len(study.by_depth["plain"]))
    return [
        _gradients_stay_alive(study, trained=False),
        _gradients_stay_alive(study, trained=True),
        _deep_ones_train(study),
        *(_convergence_is_faster(study, depth) for depth in depths),
        _identity_is_easy(study),
        _efficiency_ranks(study, "multiply_adds", "compute"),
        _efficiency_ranks(study, "parameters", "parameter"),
        *_advice(study),
    ]


def alive(entry: Entry, *, trained: bool = False) -> tuple[float, ...]:
    """Return the gradient at the first block's output relative to that at the last's, one for each seed."""
    probes = [result.end if trained else result.start for result in entry.results]
    return tuple(blocks[0].gradient / blocks[-1].gradient for blocks in probes)


def steps_until(entry: Entry, psnr: float) -> tuple[float, ...]:
    """Return the steps after which a network was first seen at a PSNR, infinite where never; one for each seed."""
    return tuple(
        next((float(step) for step, value in zip(one.steps, one.psnr, strict=True) if value >= psnr), math.inf)
        for one in entry.results
    )


def _gradients_stay_alive(study: Study, *, trained: bool) -> Verdict:
    shares = {kind: alive(entries[-1], trained=trained) for kind, entries in study.by_depth.items()}

    def rule(kind: str) -> Outcome:
        faded = [share < FADED for share in shares["plain"]]
        survived = [share >= FADED for share in shares[kind]]
        return _all_or_none(all(faded) and all(survived), not any(faded) or not any(survived))

    return _about_skips(
        f"Skips keep gradients alive, {'after training' if trained else 'at initialization'}",
        rule,
        f"{study.by_depth['plain'][-1].cost.convolutions} convolutions deep, the gradient at the first block is"
        f" {_spread(shares['wan'])} of that at the last with skips and {_spread(shares['plain'])} without; less than"
        f" {FADED} is called faded.",
    )


def _deep_ones_train(study: Study) -> Verdict:
    ends = {kind: entries[-1].final_psnr for kind, entries in study.by_depth.items()}
    enough = study.constant_psnr + LEARNED

    def rule(kind: str) -> Outcome:
        without = [psnr >= enough for psnr in ends["plain"]]
        with_skips = [psnr >= enough for psnr in ends[kind]]
        return _all_or_none(all(with_skips) and not any(without), all(without) or not any(with_skips))

    shallow, *_, deep = study.by_depth["plain"]
    return _about_skips(
        "Deeper networks train only with skips",
        rule,
        f"{deep.cost.convolutions} convolutions deep, PSNR ends at {_spread(ends['wan'])} dB with skips and at"
        f" {_spread(ends['plain'])} dB without ({shallow.cost.convolutions} deep:"
        f" {_spread(study.by_depth['wan'][0].final_psnr)} and {_spread(shallow.final_psnr)}). The mean color alone has"
        f" {study.constant_psnr:.2f} dB; {LEARNED:g} dB more is called trained.",
    )


def _convergence_is_faster(study: Study, depth: int) -> Verdict:
    plain = study.by_depth["plain"][depth]
    target, last = mean(plain.final_psnr), plain.results[0].steps[-1]

    def rule(kind: str) -> Outcome:
        sooner = [steps < last for steps in steps_until(study.by_depth[kind][depth], target)]
        return _all_or_none(all(sooner), not any(sooner))

    taken = steps_until(study.by_depth["wan"][depth], target)
    reached = [steps for steps in taken if math.isfinite(steps)]
    when = f"after {_spread(reached, digits=0)} steps" if reached else "never"
    missed = f" ({len(taken) - len(reached)} of {len(taken)} seeds never)" if 0 < len(reached) < len(taken) else ""
    return _about_skips(
        f"Skips make convergence faster, {plain.cost.convolutions} convolutions deep",
        rule,
        f"The {target:.2f} dB at which the network without skips ends after {last} steps are reached with skips"
        f" {when}{missed}.",
    )


def _identity_is_easy(study: Study) -> Verdict:
    errors = {kind: tuple(result.end for result in results) for kind, results in study.identity.items()}

    def rule(kind: str) -> Outcome:
        order = _order(errors["plain"], errors[kind])
        return _all_or_none(order > 0, order < 0)

    return _about_skips(
        "With skips, the identity is easy",
        rule,
        "A stack of blocks taught to pass on its input ends at a relative error of"
        f" {_spread(errors['wan'], digits=3)} with skips and {_spread(errors['plain'], digits=3)} without.",
    )


def _efficiency_ranks(study: Study, budget: Budget, name: str) -> Verdict:
    psnr = {kind: study.at_equal[budget][kind].final_psnr for kind in EFFICIENCY[budget]}
    claimed = EFFICIENCY[budget]
    orders = {
        f"{better} over {worse}": _order(psnr[better], psnr[worse])
        for better, worse in product(claimed, claimed)
        if claimed[better] > claimed[worse]
    }
    words = {HIGH: "high", MEDIUM: "medium", LOW: "low"}
    ranks = ", ".join(f"{kind} {words[rank]}" for kind, rank in claimed.items())
    measured = sorted(psnr, key=lambda kind: -mean(psnr[kind]))
    against = [pair for pair, order in orders.items() if order < 0]
    return Verdict(
        claim=f"Efficiency by {name} ranks: {ranks}",
        outcome=_all_or_none(all(order > 0 for order in orders.values()), bool(against)),
        figures=f"At equal {'multiply-adds' if budget == 'multiply_adds' else budget}, PSNR is "
        + ", ".join(f"{kind} {_spread(psnr[kind])}" for kind in measured)
        + f" dB. Of the {len(orders)} pairs that the claim puts in an order, {_listed(orders, 1)} came out so,"
        f" {_listed(orders, -1)} the other way round, {_listed(orders, 0)} within the spread.",
    )


def _advice(study: Study) -> list[Verdict]:
    shallow, middle, deep = ({kind: study.by_depth[kind][depth] for kind in ADVISED} for depth in (0, 1, -1))
    compute, parameters = study.at_equal["multiply_adds"], study.at_equal["parameters"]
    return [
        _is_best("resnet", shallow, f"Post-activation for shallow networks ({_depth(shallow)})", "equal width"),
        _is_best("bottleneck", compute, f"Bottlenecks from about 50 layers ({_depth(middle)})", "equal multiply-adds"),
        _is_best("preact", deep, f"Pre-activation from about 100 layers ({_depth(deep)})", "equal width"),
        _is_best("dense", parameters, "Dense where parameters are few", "equal parameters"),
    ]


def _is_best(advised: str, entries: dict[str, Entry], claim: str, basis: str) -> Verdict:
    psnr = {kind: entries[kind].final_psnr for kind in ADVISED}
    orders = [_order(psnr[advised], psnr[kind]) for kind in ADVISED if kind != advised]
    return Verdict(
        claim=claim,
        outcome=_all_or_none(all(order > 0 for order in orders), any(order < 0 for order in orders)),
        figures=f"At {basis}, PSNR is "
        + ", ".join(f"{kind} {_spread(psnr[kind])}" for kind in sorted(psnr, key=lambda kind: -mean(psnr[kind])))
        + " dB.",
    )


def _about_skips(claim: str, rule: Callable[[str], Outcome], figures: str) -> Verdict:
    others = "; ".join(f"{kind}: {rule(kind)}" for kind in SKIPS[1:])
    return Verdict(claim=claim, outcome=rule("wan"), figures=figures, others=others)


def _all_or_none(held: bool, failed: bool) -> Outcome:
    return "held" if held else "did not hold" if failed else "unclear"


def _order(first: Sequence[float], second: Sequence[float]) -> int:
    """Return 1 where all of `first` lie above all of `second`, -1 where below, 0 where they overlap."""
    return (min(first) > max(second)) - (max(first) < min(second))


def _spread(values: Sequence[float], *, digits: int = 2, signed: bool = False) -> str:
    sign = "+" if signed else ""

    def shown(value: float) -> str:
        small = digits > 0 and 0 < abs(value) < 10**-digits
        return f"{value:{sign}.1e}" if small else f"{value:{sign}.{digits}f}"

    return f"{shown(mean(values))} ({shown(min(values))} to {shown(max(values))})"


def _listed(orders: dict[str, int], wanted: int) -> str:
    pairs = [pair for pair, order in orders.items() if order == wanted]
    return f"{len(pairs)} ({', '.join(pairs)})" if pairs else "none"


def _depth(entries: dict[str, Entry]) -> str:
    convolutions: Iterable[int] = sorted({entry.cost.convolutions for entry in entries.values()})
    return f"{min(convolutions)} to {max(convolutions)} convolutions"
