import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import random_latents, random_vae, random_video, small_config
from wan_vae.benchmark import measure
from wan_vae.benchmark.implementations import WAN_VAE, load_on_meta
from wan_vae.benchmark.measure import (
    OUTSIDE,
    PeakMemory,
    ProfileEntry,
    Work,
    copy_ceiling,
    count_work,
    describe_machine,
    matmul_ceiling,
    measure_memory,
    time_by_layer,
    time_by_operation,
)
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d

CPU = torch.device("cpu")
MIB = 2**20


PEAK = """
import torch
from wan_vae.benchmark.measure import measure_memory
MIB = 2**20
held = torch.ones(64 * MIB, dtype=torch.uint8)
def call():
    torch.ones(96 * MIB, dtype=torch.uint8)  # gone before the next
    return torch.ones(32 * MIB, dtype=torch.uint8) + held[: 32 * MIB]
used = []
for _ in range(4):  # the rest of the process may grow meanwhile, so the least counts
    result, peak = measure_memory(call, torch.device("cpu"))
    assert result.numel() == 32 * MIB
    assert peak.reserved is None
    used.append(peak.used)
print(min(used))
"""


CACHED = """
import torch
from wan_vae.benchmark.measure import measure_memory
def call():
    # Each too small for glibc to map it by itself.
    _ = [torch.ones(2**16, dtype=torch.uint8) for _ in range(512)]
call()
print(measure_memory(call, torch.device("cpu"))[1].used)
"""


def printed_by(program: str) -> int:
    # In a process of its own: the commands, which other tests run in this one, tell glibc to keep freed memory.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return int(subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")
def test_measure_memory_includes_temporaries_and_the_result() -> None:
    assert 96 * MIB <= printed_by(PEAK) + MIB < 104 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")
def test_measure_memory_of_cached_memory_counts() -> None:
    assert printed_by(CACHED) > 30 * MIB


def test_measure_memory_without_procfs_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PROCESS", tmp_path / "nowhere")
    assert measure_memory(lambda: 3, CPU) == (3, PeakMemory(None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_measure_memory_on_cuda_counts_tensors() -> None:
    result, peak = measure_memory(lambda: torch.ones(64 * MIB, dtype=torch.uint8, device="cuda"), torch.device("cuda"))
    assert peak.used == result.numel()
    assert peak.reserved >= peak.used


def test_ceilings_are_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SIDES", {"cpu": (16, 64)})
    monkeypatch.setattr(measure, "_COPIED_BYTES", {"cpu": 2**20})
    asked = []
    seconds = {2 * 16**3: 1e-6, 2 * 64**3: 1e-5, 2**20: 1e-4}
    monkeypatch.setattr(measure, "_least_seconds", lambda call, device: seconds[asked.pop(0)])
    asked[:] = [2 * 16**3, 2 * 64**3]
    assert matmul_ceiling(torch.float32, torch.device("cpu")) == pytest.approx(2 * 64**3 / 1e-5)
    asked[:] = [2**20]
    assert copy_ceiling(torch.device("cpu")) == pytest.approx(2 * 2**20 / 1e-4)


def test_matmul_ceiling_of_a_slow_dtype_skips_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SIDES", {"cpu": (4, 8)})
    calls = []

    def slow(call: object, device: torch.device) -> float:
        calls.append(call)
        return 1.0

    monkeypatch.setattr(measure, "_least_seconds", slow)
    assert matmul_ceiling(torch.float16, torch.device("cpu")) == 2 * 4**3
    assert len(calls) == 1


def test_matmul_ceiling_restores_the_matmul_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SIDES", {"cpu": (4,)})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert matmul_ceiling(torch.float32, torch.device("cpu")) > 0
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


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


def test_time_by_layer_excludes_nested_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    time = FakeTime()
    monkeypatch.setattr(measure, "time", time)
    monkeypatch.setattr(measure, "time", time)
    network = nn.Sequential(Worker(time, 5, Worker(time, 10), Worker(time, 11)), Worker(time, 2))

    def call() -> None:
        time.now += 3
        network(torch.zeros(1))

    assert time_by_layer(network, call, CPU) == [
        ProfileEntry("0.blocks.*", 21, 2),
        ProfileEntry("0", 5, 1),
        ProfileEntry(OUTSIDE, 3, 1),
        ProfileEntry("1", 2, 1),
    ]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_time_by_layer_lists_every_layer_that_ran() -> None:
    vae = random_vae(small_config(blocks_per_level=2), torch.float32)
    names = {each.name for each in time_by_layer(vae, lambda: vae.posterior(random_video(5, 8, 8)), CPU)}
    assert {"encoder.conv_in", "encoder.levels.0.blocks.*.conv1", "quant_conv", OUTSIDE} <= names
    assert not any(".blocks.0" in name or name.startswith("decoder") for name in names)


def test_time_by_operation_counts_calls_longest_first() -> None:
    matrix = torch.ones(64, 64)
    spent = time_by_operation(lambda: (matrix @ matrix @ matrix).tanh_(), torch.device("cpu"))
    calls = {each.name: each.calls for each in spent}
    assert (calls["aten::mm"], calls["aten::tanh_"]) == (2, 1)
    seconds = [each.seconds for each in spent]
    assert seconds == sorted(seconds, reverse=True)
    assert min(seconds) > 0


def test_count_work_of_a_convolution() -> None:
    with torch.device("meta"):
        layer = CausalConv3d(5, 7).requires_grad_(False)
        x = torch.empty(1, 5, 4, 6, 8)
    # Two frames of zeros are put before the four, the pixels around them are left to the convolution.
    multiplied = 7 * (4 * 6 * 8) * (5 * 3 * 3 * 3)
    passed = 5 * (6 * 6 * 8) + 7 * (4 * 6 * 8) + 7 * 5 * 3 * 3 * 3 + 7
    assert count_work(lambda: layer(x, Halo())) == Work(flops=2 * multiplied, elements=passed)


def test_count_work_of_a_matrix_product() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert count_work(lambda: F.silu(a @ b)) == Work(flops=2 * 3 * 4 * 5, elements=12 + 20 + 15)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_count_work_on_meta_equals_a_real_call(direction: str) -> None:
    config = small_config()
    # In float64 the network takes convolutions that torch's counter knows; of attention on a CPU, not all releases know
    # the fused kernel.
    vae = random_vae(config)
    given = random_video(9, 16, 12) if direction == "encode" else random_latents(config, 5, 8, 6)
    with torch.inference_mode():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            vae.posterior(given) if direction == "encode" else vae.decode(given)
        blank = load_on_meta(WAN_VAE, config, device=given.device, dtype=given.dtype)
        found = count_work(lambda: getattr(blank, direction)(given.to("meta")))
    assert found.flops == counter.get_total_flops() > 0
    assert found.elements > sum(weight.numel() for weight in getattr(vae, f"{direction}r").parameters())


@pytest.mark.parametrize(
    ("capability", "instructions"),
    [("AVX512", ["avx2", "avx512_bf16", "amx_bf16"]), ("AVX2", ["avx2"])],
)
def test_describe_machine_reads_cpuinfo(
    capability: str, instructions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: A Processor  \nflags\t\t: fpu avx2 avx512_bf16 amx_bf16\n\nprocessor\t: 1\n"
    )
    found = describe_machine("cpu", tmp_path / "cpuinfo")
    assert (found["device"], found["name"], found["cpu"]) == ("cpu", "A Processor", "A Processor")
    assert found["instructions"] == instructions
    assert found["cores"] >= 1


def test_describe_machine_without_cpuinfo_uses_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    found = describe_machine("cpu", tmp_path / "nowhere")
    assert (found["name"], found["instructions"]) == ("arm64", [])
