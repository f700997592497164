import pytest
import torch
from torch import Tensor, nn

from tests.helpers import random_vae, random_video, small_config
from wan_vae.benchmark import measure as clock
from wan_vae.benchmark import measure as layers
from wan_vae.benchmark.measure import OUTSIDE, Spent, time_by_layer

CPU = torch.device("cpu")


class FakeTime:
    """A clock that stands still unless somebody works."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Worker(nn.Module):
    def __init__(self, time: FakeTime, seconds: float, *inside: nn.Module) -> None:
        super().__init__()
        self.time = time
        self.seconds = seconds
        self.blocks = nn.ModuleList(inside)

    def forward(self, x: Tensor) -> Tensor:
        self.time.now += self.seconds
        for block in self.blocks:
            x = block(x)
        return x


def test_a_layer_counts_for_what_it_does_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    time = FakeTime()
    monkeypatch.setattr(layers, "time", time)
    monkeypatch.setattr(clock, "time", time)
    network = nn.Sequential(Worker(time, 5, Worker(time, 10), Worker(time, 11)), Worker(time, 2))

    def call() -> None:
        time.now += 3
        network(torch.zeros(1))

    assert time_by_layer(network, call, CPU) == [
        Spent("0.blocks.*", 21, 2),
        Spent("0", 5, 1),
        Spent(OUTSIDE, 3, 1),
        Spent("1", 2, 1),
    ]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_every_layer_of_the_network_is_seen() -> None:
    vae = random_vae(small_config(blocks_per_level=2), torch.float32)
    names = {each.name for each in time_by_layer(vae, lambda: vae.posterior(random_video(5, 8, 8)), CPU)}
    assert {"encoder.conv_in", "encoder.levels.0.blocks.*.conv1", "quant_conv", OUTSIDE} <= names
    assert not any(".blocks.0" in name or name.startswith("decoder") for name in names)
