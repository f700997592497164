"""What the source claims, by which rule each claim is judged, and whether it held.

Two kinds differ where an exact two-sided rank-sum test over the seeds puts the chance of such an order, were they
equal, at `LEVEL` or less; "could not tell" is all else. The rules were written before the runs that they judge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import mean, median
from typing import Literal

from experiments.residual_blocks.settings import Kind
from experiments.residual_blocks.stacks import Task
from experiments.residual_blocks.study import ADVISED, STANDARD, Entry, Study

Outcome = Literal["held", "did not hold", "could not tell"]
Resource = Literal["multiply-adds", "CPU seconds"]
LEVEL = 0.05
MARGIN = 0.5  # dB that a user would not miss
TRAINED = 1.0  # dB above a guess that looks at nothing
_FLOOR = f" or {TRAINED:g} dB above the mean color where that is more"
LARGE = 10.0  # times a gradient may grow or shrink from the last block to the first
MARKED = 2.0  # times less is markedly less
HIGH, MEDIUM, LOW = 3, 2, 1
COMPUTE: dict[Kind, int] = {"bottleneck": HIGH, "resnet": MEDIUM, "preact": MEDIUM, "dense": LOW}
PARAMETERS: dict[Kind, int] = {"resnet": HIGH, "preact": HIGH, "bottleneck": MEDIUM, "dense": MEDIUM}


@dataclass(frozen=True)
class Verdict:
    """Whether a claim held.

    Attributes:
        title: Short.
        source: The sentence, in Chinese.
        translation: Of it.
        rule: When it counts as held, and when as not held.
        outcome: What the rule says.
        figures: What was measured, as sentences.
    """

    title: str
    source: str
    translation: str
    rule: str
    outcome: Outcome
    figures: str


def verdicts_of(study: Study) -> list[Verdict]:
    """Judge all claims, in the order of the source, its advice first."""
    return [
        _shallow(study),
        _stability(study),
        _bottlenecks(study),
        _reuse(study),
        _small_set(study),
        _gradients(study, trained=False),
        _gradients(study, trained=True),
        _depth(study),
        _convergence(study),
        _identity(study),
        _compute(study, "multiply-adds"),
        _compute(study, "CPU seconds"),
        _parameters(study),
    ]


def order(first: Sequence[float], second: Sequence[float]) -> int:
    """Return 1 where `first` is larger by an exact two-sided rank-sum test, -1 where it is smaller, else 0."""
    pooled = [*first, *second]
    ranks = [sum(other < one for other in pooled) + sum(other == one for other in pooled) / 2 for one in pooled]
    expected = len(first) * mean(ranks)
    found = sum(ranks[: len(first)]) - expected
    all_splits = [abs(sum(chosen) - expected) for chosen in combinations(ranks, len(first))]
    chance = mean(split >= abs(found) - 1e-9 for split in all_splits)
    return 0 if chance > LEVEL else (found > 0) - (found < 0)


def share(entry: Entry, *, trained: bool = False) -> tuple[float, ...]:
    """Return the gradient at the first block's output relative to that at the last's, one for each seed."""
    probes = [result.end if trained else result.start for result in entry.results]
    return tuple(blocks[0].gradient / blocks[-1].gradient if blocks[-1].gradient else math.nan for blocks in probes)


def spent_until(entry: Entry, psnr: float, resource: Resource | Literal["steps"]) -> tuple[float, ...]:
    """Return what a network spent until it was first seen at a PSNR, infinite where never; one for each seed."""
    found = []
    for result in entry.results:
        place = next((place for place, value in enumerate(result.psnr) if value >= psnr), None)
        if place is None:
            found.append(math.inf)
        elif resource == "CPU seconds":
            found.append(result.seconds[place])
        else:
            found.append(result.steps[place] * (1.0 if resource == "steps" else entry.multiply_adds_per_step))
    return tuple(found)


def fails(entry: Entry, study: Study) -> list[bool]:
    """Return for each seed whether a network did not train."""
    return [psnr < study.constant_psnr + TRAINED for psnr in entry.final_psnr]


def _shallow(study: Study) -> Verdict:
    entries = {kind: study.by_depth[kind][0] for kind in ADVISED}
    raised = [psnr + MARGIN for psnr in entries[STANDARD].final_psnr]
    orders = [order(raised, entries[kind].final_psnr) for kind in ADVISED if kind != STANDARD]
    trains = not any(fails(entries[STANDARD], study))
    return Verdict(
        title="Shallow: the standard block suffices",
        source="对于**浅层网络**（<10层），标准残差块通常足够",
        translation="For shallow networks (under 10 layers) the standard residual block usually suffices.",
        rule=f"At {entries[STANDARD].network.layers} layers and equal parameters, held if the standard block trains"
        f" with every seed and its PSNR plus {MARGIN} dB is above that of each of the other three; did not hold"
        " if it is"
        " below that of any, or if no seed trains.",
        outcome=_outcome(
            trains and all(one > 0 for one in orders),
            any(one < 0 for one in orders) or all(fails(entries[STANDARD], study)),
        ),
        figures=f"{_psnr_of(entries)}; Wan's own block: {_spread(study.by_depth['wan'][0].final_psnr)} dB.",
    )


def _stability(study: Study) -> Verdict:
    figures, orders = [], []
    entries = {kind: study.by_depth[kind][1] for kind in (STANDARD, "preact")}
    failures = {
        kind: {rate: fails(entry, study) for rate, entry in by_rate.items()} for kind, by_rate in study.by_rate.items()
    }

    def compare(name: str, values: dict[Kind, list[float]]) -> None:
        orders.append(order(values[STANDARD], values["preact"]))
        word = {1: "better with pre-activation", -1: "worse with pre-activation", 0: "no difference"}[orders[-1]]
        figures.append(
            f"{name}: standard {_spread(values[STANDARD])}, pre-activation {_spread(values['preact'])} ({word})"
        )

    compare(
        "rates at which a seed does not train",
        {
            kind: [float(sum(seed)) for seed in zip(*by_rate.values(), strict=True)]
            for kind, by_rate in failures.items()
        },
    )
    figures.append(
        "seeds that do not train "
        + ", ".join(
            f"at {rate:g}, standard {sum(failed)}, pre-activation {sum(failures['preact'][rate])}"
            for rate, failed in failures[STANDARD].items()
        )
    )
    compare(
        "distance of the final PSNR from the mean over seeds, dB",
        {kind: [abs(psnr - mean(entry.final_psnr)) for psnr in entry.final_psnr] for kind, entry in entries.items()},
    )
    compare(
        "largest gradient norm relative to the median one",
        {kind: [result.spike for result in entry.results] for kind, entry in entries.items()},
    )
    return Verdict(
        title="Medium depth: pre-activation for stability",
        source="对于**中等深度网络**（10-50层），可选择预激活残差块提高稳定性",
        translation="For networks of medium depth (10 to 50 layers), pre-activation can be chosen for more stability.",
        rule=f"At {entries[STANDARD].network.layers} layers, three measures against the standard block: learning rates"
        " at which a seed does not train, the spread of the final PSNR over seeds, and spikes of the gradient norm, the"
        " latter two at each kind's chosen rate. Held if pre-activation is better in one and worse in none; did not"
        " hold if it is worse in one and better in none.",
        outcome=_outcome(max(orders) > 0 and min(orders) >= 0, min(orders) < 0 and max(orders) <= 0),
        figures=f"{'; '.join(figures)}. {_psnr_of(entries)}.",
    )


def _bottlenecks(study: Study) -> Verdict:
    standard = study.by_depth[STANDARD][-1]
    held, failed, figures = [], [], []
    for name, entry in (("of equal parameters", study.by_depth["bottleneck"][-1]), ("of equal width", study.narrow)):
        target = _common_target(study, [standard, entry])
        usable, trains = (mean(one.final_psnr) >= study.constant_psnr + TRAINED for one in (standard, entry))
        cheaper, faster = {}, {}
        for resource in ("multiply-adds", "CPU seconds"):
            taken, usual = (spent_until(one, target, resource) for one in (entry, standard))
            cheaper[resource] = order(usual, [MARKED * one for one in taken])
            faster[resource] = order(usual, taken)
            figures.append(f"{name}, {_scale(taken, resource)} to {target:.2f} dB, standard {_scale(usual, resource)}")
        held.append(usable and trains and cheaper["multiply-adds"] > 0 and faster["CPU seconds"] > 0)
        failed.append(usable and (not trains or cheaper["multiply-adds"] < 0 or faster["CPU seconds"] < 0))
        figures.append(f"its PSNR ends at {_spread(entry.final_psnr)} dB, {_ratio(entry, standard)}")
    return Verdict(
        title="Very deep: bottlenecks lower the cost",
        source="对于**超深网络**（>50层），瓶颈残差块可显著降低计算成本",
        translation="For very deep networks (over 50 layers), bottlenecks can markedly lower the cost of computing.",
        rule=f"At {standard.network.layers} layers, two bottleneck networks: one of the standard network's parameters,"
        f" one of its channels between blocks. The quality is the lowest final PSNR of any seed of the two,{_FLOOR}."
        f" Held if one of the two reaches it with less than 1/{MARKED:g} of the standard's multiply-adds and in"
        " less CPU"
        f" time; did not hold if each takes more than 1/{MARKED:g} of the multiply-adds or more time, or does"
        " not train. Not"
        " judged if the standard block does not train on average.",
        outcome=_outcome(any(held), all(failed)),
        figures=f"{'; '.join(figures)}. The standard block's PSNR ends at {_spread(standard.final_psnr)} dB.",
    )


def _reuse(study: Study) -> Verdict:
    decibels: dict[Task, dict[Kind, list[float]]] = {
        task: {kind: [-20 * math.log10(result.end) for result in results] for kind, results in kinds.items()}
        for task, kinds in study.stacks.items()
    }
    return _dense_leads(
        study,
        title="Dense where features are reused and compute is plentiful",
        source="当**特征重用**非常重要且计算资源充足时，考虑密集连接",
        translation="Where reuse of features matters much and compute is plentiful, consider dense connections.",
        setting="Few blocks at equal parameters and steps, the cost ignored, learn a chain of three fixed functions:"
        " all its values (reuse) or only the last (no reuse). By error in dB below the data's spread",
        special=("reuse", decibels["every"]),
        general=("no reuse", decibels["last"]),
    )


def _small_set(study: Study) -> Verdict:
    middle = {kind: study.by_depth[kind][1] for kind in ADVISED}
    return _dense_leads(
        study,
        title="Dense for small data sets",
        source="密集连接……最大化特征重用，适合小数据集",
        translation="(Table) Dense connections: most reuse of features, suits small data sets.",
        setting=f"At {middle[STANDARD].network.layers} layers and equal parameters, trained on few pictures"
        " (small) or on"
        " pictures that are always new (large). By PSNR in dB",
        special=("small", {kind: list(entry.final_psnr) for kind, entry in study.small_set.items()}),
        general=("large", {kind: list(entry.final_psnr) for kind, entry in middle.items()}),
    )


def _dense_leads(
    study: Study,
    *,
    title: str,
    source: str,
    translation: str,
    setting: str,
    special: tuple[str, dict[Kind, list[float]]],
    general: tuple[str, dict[Kind, list[float]]],
) -> Verdict:
    def lead(values: dict[Kind, list[float]]) -> list[float]:
        return [one - other for one, other in zip(values["dense"], values[STANDARD], strict=True)]

    above = order(special[1]["dense"], special[1][STANDARD])
    gains = order(lead(special[1]), lead(general[1]))
    return Verdict(
        title=title,
        source=source,
        translation=translation,
        rule=f"{setting}, held if dense is above the standard block with {special[0]}, by more than with {general[0]};"
        f" did not hold if it is below with {special[0]}, or its lead is less than with {general[0]}.",
        outcome=_outcome(above > 0 and gains > 0, above < 0 or gains < 0),
        figures="; ".join(
            f"{name}: {', '.join(f'{kind} {_spread(values[kind])}' for kind in ADVISED)} dB,"
            f" lead of dense {_spread(lead(values))}"
            for name, values in (special, general)
        )
        + ".",
    )


def _gradients(study: Study, *, trained: bool) -> Verdict:
    shares = {kind: share(study.by_depth[kind][-1], trained=trained) for kind in study.by_depth}
    decades = {
        kind: [abs(math.log10(one)) if one > 0 and math.isfinite(one) else math.inf for one in values]
        for kind, values in shares.items()
    }
    at_risk = median(decades["plain"]) > math.log10(LARGE)
    found = order(decades["plain"], decades["wan"])
    nearer = [kind for kind in ("wan", *ADVISED) if order(decades["plain"], decades[kind]) > 0]
    return Verdict(
        title="With Wan's skip gradients neither vanish nor explode, "
        f"{'after training' if trained else 'at initialization'}",
        source="在深度网络中，梯度可以通过跳跃连接直接向后传播，减轻了梯度消失/爆炸问题",
        translation="In deep networks gradients can pass back through the skips, which eases vanishing and exploding.",
        rule=f"At {study.by_depth['plain'][-1].network.layers} layers, the gradient at the first block relative to that"
        f" at the last. Held if without skips it is off by more than {LARGE:g} times (median seed) and with"
        " Wan's skip it"
        " is off by less than without; did not hold if it is not off without skips, or is further off with them.",
        outcome=_outcome(at_risk and found > 0, not at_risk or found < 0),
        figures=f"Wan's block {_range(shares['wan'])}, without its skip {_range(shares['plain'])}; "
        + ", ".join(f"{kind} {_range(shares[kind])}" for kind in ADVISED)
        + f". Off by less than without a skip: {', '.join(nearer) or 'none'}.",
    )


def _depth(study: Study) -> Verdict:
    shallow, deep = ({kind: study.by_depth[kind][place] for kind in study.by_depth} for place in (0, -1))
    change = {kind: order(deep[kind].final_psnr, shallow[kind].final_psnr) for kind in deep}
    lost = sum(fails(deep["wan"], study))
    rows = [
        f"{kind} {' / '.join(_spread(entry.final_psnr) for entry in study.by_depth[kind])}"
        for kind in ("plain", "wan", *ADVISED)
    ]
    depths = " / ".join(str(entry.network.layers) for entry in study.by_depth["plain"])
    return Verdict(
        title="Much deeper networks train",
        source="引入残差连接前，增加网络深度往往会导致性能下降，而残差连接使得非常深的网络……可以被有效训练",
        translation="Before skips, more depth often made networks worse; skips let very deep ones be trained well.",
        rule="From the fewest layers to the most, held if PSNR falls without skips, and Wan's block trains with every"
        " seed and does not fall; did not hold if PSNR rises without skips, or Wan's block falls or trains with no"
        " seed.",
        outcome=_outcome(
            change["plain"] < 0 and change["wan"] >= 0 and lost == 0,
            change["plain"] > 0 or change["wan"] < 0 or lost == len(deep["wan"].results),
        ),
        figures=f"PSNR in dB at {depths} layers: {'; '.join(rows)}. The mean color has {study.constant_psnr:.2f}.",
    )


def _convergence(study: Study) -> Verdict:
    orders, figures = [], []
    for plain, skips in zip(study.by_depth["plain"], study.by_depth["wan"], strict=True):
        if any(fails(plain, study)):
            figures.append(f"{plain.network.layers} layers: without skips not every seed trains, so not judged")
            continue
        target = _common_target(study, [plain, skips])
        taken = {name: spent_until(one, target, "steps") for name, one in (("with", skips), ("without", plain))}
        orders.append(order(taken["without"], taken["with"]))
        figures.append(
            f"{plain.network.layers} layers: {target:.2f} dB after {_scale(taken['with'], 'steps')} with skips and"
            f" {_scale(taken['without'], 'steps')} without"
        )
    return Verdict(
        title="Faster convergence",
        source="残差连接使网络可以更快地收敛，加速训练过程",
        translation="Skips let networks converge faster and speed up training.",
        rule=f"Steps until the lowest final PSNR of any seed of the two networks,{_FLOOR}, is first reached, at each"
        " depth at which the one without skips trains with every seed. Held if there are such depths and Wan's block"
        " takes fewer steps at each; did not hold if it takes more at any.",
        outcome=_outcome(bool(orders) and min(orders) > 0, any(one < 0 for one in orders)),
        figures=f"{'; '.join(figures)}.",
    )


def _identity(study: Study) -> Verdict:
    errors = {kind: [result.end for result in results] for kind, results in study.stacks["identity"].items()}
    found = order(errors["plain"], errors["wan"])
    return Verdict(
        title="The identity is easy",
        source="如果恒等映射是最优的，残差网络可以通过将权重推向零来轻松学习恒等映射",
        translation="Where the identity is best, a residual network learns it with ease by pushing weights to zero.",
        rule="Few blocks are fitted to pass on their input. Held if the error on fresh data is lower with Wan's skip"
        " than without; did not hold if it is higher.",
        outcome=_outcome(found > 0, found < 0),
        figures="Error relative to the data's spread: "
        + ", ".join(f"{kind} {_range(errors[kind])}" for kind in ("wan", "plain", *ADVISED))
        + ".",
    )


def _compute(study: Study, resource: Resource) -> Verdict:
    entries = {kind: study.by_depth[kind][1] for kind in ADVISED}
    target = _common_target(study, list(entries.values()))
    taken = {kind: spent_until(entry, target, resource) for kind, entry in entries.items()}
    return _ranks(
        title=f"Efficiency of compute, by {resource}",
        source="计算效率：标准残差块 中，瓶颈残差块 高，预激活残差块 中，密集连接 低",
        translation="(Table) Compute: standard medium, bottleneck high, pre-activation medium, dense low efficiency.",
        setting=f"{resource} to the same quality, the lowest final PSNR of any seed of the four,{_FLOOR}",
        claimed=COMPUTE,
        values={kind: tuple(-one for one in values) for kind, values in taken.items()},
        layers=entries[STANDARD].network.layers,
        figures=f"To {target:.2f} dB: "
        + ", ".join(f"{kind} {_scale(values, resource)}" for kind, values in taken.items())
        + ".",
    )


def _parameters(study: Study) -> Verdict:
    entries = {kind: study.by_depth[kind][1] for kind in ADVISED}
    return _ranks(
        title="Efficiency of parameters",
        source="参数效率：标准残差块 高，瓶颈残差块 中，预激活残差块 高，密集连接 中",
        translation="(Table) Parameters: standard high, bottleneck medium, pre-activation high, dense medium"
        " efficiency.",
        setting="final PSNR at equal parameters",
        claimed=PARAMETERS,
        values={kind: entry.final_psnr for kind, entry in entries.items()},
        layers=entries[STANDARD].network.layers,
        figures=f"{_psnr_of(entries)}.",
    )


def _ranks(
    *,
    title: str,
    source: str,
    translation: str,
    setting: str,
    claimed: dict[Kind, int],
    values: dict[Kind, tuple[float, ...]],
    layers: int,
    figures: str,
) -> Verdict:
    orders = {
        f"{better} over {worse}": order(values[better], values[worse])
        for better, worse in product(claimed, claimed)
        if claimed[better] > claimed[worse]
    }
    found = {sign: [pair for pair, one in orders.items() if one == sign] for sign in (1, -1, 0)}
    listed = {sign: f"{len(pairs)} ({', '.join(pairs)})" if pairs else "none" for sign, pairs in found.items()}
    return Verdict(
        title=title,
        source=source,
        translation=translation,
        rule=f"At {layers} layers, by {setting}: held if every pair that the table puts in an order comes out so, did"
        " not hold if any comes out the other way round.",
        outcome=_outcome(len(found[1]) == len(orders), bool(found[-1])),
        figures=f"{figures} Of {len(orders)} pairs {listed[1]} came out so, {listed[-1]} the other way round,"
        f" {listed[0]} could not be told apart.",
    )


def _common_target(study: Study, entries: Sequence[Entry]) -> float:
    # What every seed reaches, but for those that do not train.
    return max(study.constant_psnr + TRAINED, min(psnr for entry in entries for psnr in entry.final_psnr))


def _outcome(held: bool, failed: bool) -> Outcome:
    return "held" if held else "did not hold" if failed else "could not tell"


def _psnr_of(entries: dict[Kind, Entry]) -> str:
    ranked = sorted(entries, key=lambda kind: -mean(entries[kind].final_psnr))
    return f"PSNR {', '.join(f'{kind} {_spread(entries[kind].final_psnr)}' for kind in ranked)} dB"


def _ratio(entry: Entry, standard: Entry) -> str:
    multiply_adds = entry.cost.multiply_adds / standard.cost.multiply_adds
    seconds = mean(one.seconds[-1] for one in entry.results) / mean(one.seconds[-1] for one in standard.results)
    return f"a step takes {multiply_adds:.2f} of the standard's multiply-adds and {seconds:.2f} of its CPU time"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _range(values: Sequence[float]) -> str:
    return f"{median(values):.2g} ({min(values):.2g} to {max(values):.2g})"


def _scale(values: Sequence[float], resource: Resource | Literal["steps"]) -> str:
    unit, divisor = ("10^9 multiply-adds", 1e9) if resource == "multiply-adds" else (resource, 1.0)
    reached = [value / divisor for value in values if math.isfinite(value)]
    missed = f", {len(values) - len(reached)} of {len(values)} seeds never" if len(reached) < len(values) else ""
    if not reached:
        return "never"
    return f"{median(reached):.3g} ({min(reached):.3g} to {max(reached):.3g}{missed}) {unit}"
