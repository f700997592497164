import pytest
import torch

from experiments.residual_blocks.networks import Network
from experiments.residual_blocks.settings import Ablation, StackSection
from experiments.residual_blocks.stacks import StackJob, Task, _target


@pytest.mark.parametrize("task", ["identity", "last", "every"])
def test_a_task_is_learned_better_with_more_steps(task: Task, quick: Ablation) -> None:
    network = Network(kind="wan", units=1, width=4, common=quick.network)

    def end(steps: int) -> float:
        stack = StackSection(units=1, steps=steps, learning_rates=(0.01,))
        return StackJob(network=network, task=task, stack=stack, learning_rate=0.01, seed=0).run().end

    assert end(40) < 0.9 * end(1)


def test_the_chain_repeats_its_function_and_all_its_values_include_the_input() -> None:
    x = torch.randn(1, 8, 1, 4, 4)
    kernels = list(torch.randn(3, 8, 8, 1, 3, 3))
    every = _target(x, "every", kernels).split(8, dim=1)
    assert torch.equal(every[0], x)
    assert torch.equal(every[-1], _target(x, "last", kernels))
    assert torch.allclose(every[2], _target(every[1], "every", kernels[1:]).split(8, dim=1)[1])
    assert _target(x, "identity", kernels) is x
