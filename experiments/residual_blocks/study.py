"""The whole ablation: which networks, at which learning rate, and what came of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from experiments.residual_blocks.data import digest_of_pictures, validation_pictures
from experiments.residual_blocks.jobs import perform, stored_at
from experiments.residual_blocks.networks import Cost, Network, cost
from experiments.residual_blocks.settings import KINDS, Ablation, Kind
from experiments.residual_blocks.stacks import StackJob, StackResult, Task
from experiments.residual_blocks.training import TrainingJob, TrainingResult, constant_psnr

ADVISED: tuple[Kind, ...] = ("resnet", "bottleneck", "preact", "dense")  # the four that the source compares
STANDARD: Kind = "resnet"
TRIED_FOR_STABILITY: tuple[Kind, ...] = (STANDARD, "preact")


@dataclass(frozen=True)
class Entry:
    """One network, and how it fared with every seed.

    Attributes:
        network: Which.
        cost: What it costs.
        learning_rate: The one that was chosen for it.
        batch: Pictures of a training step.
        results: One for each seed.
    """

    network: Network
    cost: Cost
    learning_rate: float
    batch: int
    results: tuple[TrainingResult, ...]

    @property
    def final_psnr(self) -> tuple[float, ...]:
        """PSNR after the last step in dB, one for each seed."""
        return tuple(result.psnr[-1] for result in self.results)

    @property
    def multiply_adds_per_step(self) -> int:
        """Of a training step; the backward pass takes two for each of the forward pass."""
        return 3 * self.batch * self.cost.multiply_adds


@dataclass(frozen=True)
class Study:
    """All that was found.

    Attributes:
        by_depth: Entries of equally many layers and about equal parameters, from the shallowest to the deepest.
        narrow: The deepest bottleneck network with the standard network's channels between its blocks.
        by_rate: Networks of middle depth, by kind and learning rate.
        small_set: Networks of middle depth, trained on few pictures.
        stacks: How the synthetic tasks were learned, by task and kind, one for each seed.
        constant_psnr: PSNR in dB that takes no learning: see `experiments.residual_blocks.training.constant_psnr`.
    """

    by_depth: dict[Kind, tuple[Entry, ...]]
    narrow: Entry
    by_rate: dict[Kind, dict[float, Entry]]
    small_set: dict[Kind, Entry]
    stacks: dict[Task, dict[Kind, tuple[StackResult, ...]]]
    constant_psnr: float


def run_study(settings: Ablation, folder: Path, workers: int, say: Callable[[str], None]) -> Study:
    """Carry out an ablation, or what is left of it.

    Args:
        settings: What to do.
        folder: Where finished jobs are kept.
        workers: Processes that train side by side.
        say: Is told how much is left to do.
    """
    training, widths = settings.training, settings.network.widths
    pictures = digest_of_pictures(settings.photos, training)

    def network(kind: Kind, depth: int, width: int) -> Network:
        return Network(kind=kind, units=settings.depths[depth], width=width, common=settings.network)

    def job(network: Network, rate: float, seed: int, set_size: int | None = None) -> TrainingJob:
        return TrainingJob(
            network=network,
            photos=settings.photos,
            training=training,
            pictures=pictures,
            learning_rate=rate,
            seed=seed,
            set_size=set_size,
        )

    def train(jobs: Iterable[TrainingJob]) -> dict[TrainingJob, TrainingResult]:
        wanted = list(dict.fromkeys(jobs))
        left = sum(not stored_at(one, folder).is_file() for one in wanted)
        say(f"{left} of {len(wanted)} networks are left to train.")
        return dict(zip(wanted, perform(wanted, TrainingResult, folder, workers), strict=True))

    grid = {kind: [network(kind, depth, width) for depth, width in enumerate(widths[kind])] for kind in KINDS}
    narrow = network("bottleneck", -1, widths[STANDARD][-1])
    networks = [narrow, *(one for row in grid.values() for one in row)]
    found = train(job(one, rate, settings.seeds[0]) for one in networks for rate in training.learning_rates)
    rates = {
        one: max(training.learning_rates, key=lambda rate: found[job(one, rate, settings.seeds[0])].psnr[-1])
        for one in networks
    }
    by_rate = [(grid[kind][1], rate, None) for kind in TRIED_FOR_STABILITY for rate in training.learning_rates]
    small = [(grid[kind][1], rates[grid[kind][1]], settings.small_set) for kind in ADVISED]
    runs = [*((one, rates[one], None) for one in networks), *by_rate, *small]
    # Kinds take turns, so that other load on the machine affects the seconds of all of them.
    found |= train(job(one, rate, seed, size) for seed in settings.seeds for one, rate, size in runs)

    def entry(one: Network, rate: float, set_size: int | None = None) -> Entry:
        results = tuple(found[job(one, rate, seed, set_size)] for seed in settings.seeds)
        return Entry(one, cost(one, training), rate, training.batch, results)

    return Study(
        by_depth={kind: tuple(entry(one, rates[one]) for one in row) for kind, row in grid.items()},
        narrow=entry(narrow, rates[narrow]),
        by_rate={
            kind: {rate: entry(grid[kind][1], rate) for rate in training.learning_rates} for kind in TRIED_FOR_STABILITY
        },
        small_set={one.kind: entry(one, rate, size) for one, rate, size in small},
        stacks=_fit_stacks(settings, folder, workers),
        constant_psnr=constant_psnr(validation_pictures(settings.photos, training)),
    )


def _fit_stacks(settings: Ablation, folder: Path, workers: int) -> dict[Task, dict[Kind, tuple[StackResult, ...]]]:
    widths = settings.network.widths
    # Of the identity, the width is the size: all get the same.
    stacks: dict[tuple[Task, Kind], int] = {("identity", kind): widths[STANDARD][0] for kind in KINDS}
    stacks |= {(task, kind): widths[kind][0] for task in ("last", "every") for kind in ADVISED}
    jobs = {
        (task, kind, rate): [
            StackJob(
                network=Network(kind=kind, units=settings.stack.units, width=width, common=settings.network),
                task=task,
                stack=settings.stack,
                learning_rate=rate,
                seed=seed,
            )
            for seed in settings.seeds
        ]
        for (task, kind), width in stacks.items()
        for rate in settings.stack.learning_rates
    }
    flat = [one for group in jobs.values() for one in group]
    found = dict(zip(flat, perform(flat, StackResult, folder, workers), strict=True))
    best: dict[Task, dict[Kind, tuple[StackResult, ...]]] = {}
    for task, kind in stacks:
        by_rate = [tuple(found[one] for one in jobs[task, kind, rate]) for rate in settings.stack.learning_rates]
        best.setdefault(task, {})[kind] = min(by_rate, key=lambda results: mean(result.end for result in results))
    return best
