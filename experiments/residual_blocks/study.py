"""The whole ablation: which networks, at which learning rate, and what came of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from experiments.residual_blocks.cost import BUDGETS, Budget, Cost, at_equal_cost, cost
from experiments.residual_blocks.data import validation_clips
from experiments.residual_blocks.identity import IdentityJob, IdentityResult
from experiments.residual_blocks.jobs import perform, stored_at
from experiments.residual_blocks.networks import Network
from experiments.residual_blocks.settings import Ablation
from experiments.residual_blocks.training import TimingJob, TimingResult, TrainingJob, TrainingResult, constant_psnr
from wan_vae.config import BLOCK_KINDS

REFERENCE = "resnet"  # the others are brought to its cost, for it is the block that they vary
VALIDATION_OVERHEAD = 1.2


@dataclass(frozen=True)
class Entry:
    """One network, and how it fared with every seed.

    Attributes:
        network: Which.
        cost: What it costs.
        step_seconds: Median time of a training step on one thread.
        learning_rate: The one that was chosen for it.
        results: One for each seed.
    """

    network: Network
    cost: Cost
    step_seconds: float
    learning_rate: float
    results: tuple[TrainingResult, ...]

    @property
    def final_psnr(self) -> tuple[float, ...]:
        """PSNR after the last step in dB, one for each seed."""
        return tuple(result.psnr[-1] for result in self.results)


@dataclass(frozen=True)
class Study:
    """All that was found.

    Attributes:
        by_depth: Entries of equal width, from the shallowest to the deepest, by kind.
        at_equal: Entries of middle depth whose widths bring them to the same cost, by budget and kind.
        identity: How well each kind learned the identity, one for each seed.
        constant_psnr: PSNR in dB that takes no learning: see `experiments.residual_blocks.training.constant_psnr`.
    """

    by_depth: dict[str, tuple[Entry, ...]]
    at_equal: dict[Budget, dict[str, Entry]]
    identity: dict[str, tuple[IdentityResult, ...]]
    constant_psnr: float


def run_study(settings: Ablation, folder: Path, workers: int, say: Callable[[str], None]) -> Study:
    """Carry out an ablation, or what is left of it.

    Args:
        settings: What to do.
        folder: Where finished jobs are kept.
        workers: Processes that train side by side.
        say: Is told what comes next, and how long it will take.
    """
    grid = {
        kind: tuple(
            Network.model_validate(
                {"kind": kind, "blocks_per_level": depth, "width": settings.network.width, "common": settings.network}
            )
            for depth in settings.depths
        )
        for kind in BLOCK_KINDS
    }
    middle = {kind: networks[1] for kind, networks in grid.items()}
    matched = {budget: _at_equal_cost(middle, budget, settings) for budget in BUDGETS}
    everything = (*grid.values(), *(tuple(networks.values()) for networks in matched.values()))
    entries = _train_all(
        dict.fromkeys(network for group in everything for network in group), middle, settings, folder, workers, say
    )
    return Study(
        by_depth={kind: tuple(entries[network] for network in networks) for kind, networks in grid.items()},
        at_equal={
            budget: {kind: entries[network] for kind, network in networks.items()}
            for budget, networks in matched.items()
        },
        identity=_fit_identities(middle, settings, folder, workers),
        constant_psnr=constant_psnr(validation_clips(settings.photos, settings.training)),
    )


def _at_equal_cost(middle: dict[str, Network], budget: Budget, settings: Ablation) -> dict[str, Network]:
    target: int = getattr(cost(middle[REFERENCE], settings.training), budget)
    return {kind: at_equal_cost(network, budget, target, settings.training) for kind, network in middle.items()}


def _train_all(
    networks: Iterable[Network],
    middle: dict[str, Network],
    settings: Ablation,
    folder: Path,
    workers: int,
    say: Callable[[str], None],
) -> dict[Network, Entry]:
    networks = tuple(networks)
    timing = TimingJob(networks=networks, photos=settings.photos, training=settings.training)
    if not stored_at(timing, folder).is_file():
        say(f"Timing {len(networks)} networks, one after the other.")
    [timed] = perform([timing], TimingResult, folder, workers=1)
    seconds = dict(zip(networks, timed.seconds, strict=True))
    rates = settings.training.learning_rates
    first, *others = settings.seeds

    def job(network: Network, rate: float, seed: int) -> TrainingJob:
        return TrainingJob(
            network=network, photos=settings.photos, training=settings.training, learning_rate=rate, seed=seed
        )

    def is_to_do(trained: TrainingJob) -> bool:
        return not stored_at(trained, folder).is_file()

    def train(jobs: Iterable[TrainingJob]) -> dict[TrainingJob, TrainingResult]:
        # The longest first, so that no process is left with it in the end.
        ordered = sorted(jobs, key=lambda one: -seconds[one.network])
        return dict(zip(ordered, perform(ordered, TrainingResult, folder, workers), strict=True))

    # Networks of another width take the rate of their kind at the same depth.
    tuned = [network for network in networks if network.width == settings.network.width]
    searches = [job(network, rate, first) for network in tuned for rate in rates]
    to_do = [one.network for one in searches if is_to_do(one)]
    to_do += [
        network
        for network in networks
        for seed in (others if network in tuned else settings.seeds)
        if all(is_to_do(job(network, rate, seed)) for rate in rates)
    ]
    minutes = sum(map(seconds.__getitem__, to_do)) * settings.training.steps * VALIDATION_OVERHEAD / workers / 60
    say(f"{len(to_do)} networks are left to train: about {minutes:.0f} minutes with {workers} processes.")

    found = train(searches)
    chosen = {network: max(rates, key=lambda rate: found[job(network, rate, first)].psnr[-1]) for network in tuned}
    chosen |= {network: chosen[middle[network.kind]] for network in networks if network not in chosen}
    found = train(job(network, chosen[network], seed) for network in networks for seed in settings.seeds)
    return {
        network: Entry(
            network=network,
            cost=cost(network, settings.training),
            step_seconds=seconds[network],
            learning_rate=chosen[network],
            results=tuple(found[job(network, chosen[network], seed)] for seed in settings.seeds),
        )
        for network in networks
    }


def _fit_identities(
    middle: dict[str, Network], settings: Ablation, folder: Path, workers: int
) -> dict[str, tuple[IdentityResult, ...]]:
    jobs = [
        IdentityJob(network=network, identity=settings.identity, learning_rate=rate, seed=seed)
        for network in middle.values()
        for rate in settings.identity.learning_rates
        for seed in settings.seeds
    ]
    found = dict(zip(jobs, perform(jobs, IdentityResult, folder, workers), strict=True))
    best = {}
    for kind, network in middle.items():
        by_rate = [
            tuple(result for job, result in found.items() if job.network == network and job.learning_rate == rate)
            for rate in settings.identity.learning_rates
        ]
        best[kind] = min(by_rate, key=lambda results: mean(result.end for result in results))
    return best
