import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the GPU kernels need Triton, which PyTorch for this machine comes without")

REPOSITORY = Path(__file__).parents[2]
CASES = "tests/ops/triton_cases.py"
# What a Hopper GPU has for one program, in bytes.
SHARED_MEMORY = 227 * 1024


@pytest.mark.parametrize(
    "interpreted",
    [
        pytest.param("1", id="interpreted", marks=pytest.mark.slow),
        pytest.param("0", id="compiled", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
    ],
)
def test_the_kernels_do_what_their_twins_do(interpreted: str) -> None:
    # In a process of its own, for the interpreter takes Triton's place for good, torch.compile's kernels included; and
    # without the fixtures that every session of tests begins with, which these need not wait for.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", CASES]
    environment = {**os.environ, "TRITON_INTERPRET": interpreted}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{run.stdout}\n{run.stderr}", pytrace=False)
    assert " passed" in run.stdout


@pytest.fixture
def own_compiler_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def channels_last(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last_3d)


@pytest.mark.usefixtures("own_compiler_cache")
@pytest.mark.parametrize("channels", [96, 384])
@pytest.mark.parametrize("kernel", ["descriptors", "pointers"])
def test_convolutions_compile_for_hopper(channels: int, kernel: str) -> None:
    from tests.ops.ahead_of_time import compile_launches
    from wan_vae.ops.triton import conv3d_descriptors as triton_conv3d_descriptors
    from wan_vae.ops.triton import conv3d_pointers as triton_conv3d_pointers
    from wan_vae.ops.triton.conv3d import candidates, pack_weight

    x, out = channels_last(1, channels, 4, 32, 128), channels_last(1, channels, 2, 32, 128)
    weight = pack_weight(torch.empty(channels, channels, 3, 3, 3, dtype=torch.bfloat16))
    ways = candidates(x, weight, torch.empty(channels), out, out, (1, 1))
    name = next(name for name in ways if name.startswith(kernel))
    module = {"descriptors": triton_conv3d_descriptors, "pointers": triton_conv3d_pointers}[kernel]
    [compiled] = compile_launches(module, "_convolve", ways[name])
    assert compiled.shared_memory <= SHARED_MEMORY
    product = compiled.loop_around("HGMMA")  # of the tensor cores, for four warps at once
    loads = {"descriptors": "UTMALDG", "pointers": "LDGSTS"}[kernel]  # past the registers
    assert any(loads in line for line in product)
    assert not any(spilled(line) for line in compiled.instructions)


@pytest.mark.usefixtures("own_compiler_cache")
@pytest.mark.parametrize("channels", [96, 384])
def test_passes_over_memory_compile_for_hopper(channels: int) -> None:
    from tests.ops.ahead_of_time import compile_launches
    from wan_vae.ops.triton import bias_residual as triton_add
    from wan_vae.ops.triton import norm_silu as triton_norm_silu

    x, whole = channels_last(1, channels, 4, 32, 32), channels_last(1, channels, 6, 34, 34)
    out, bias = whole[:, :, 2:, 1:-1, 1:-1], torch.empty(channels)
    for module, kernel, launch in [
        (triton_norm_silu, "_norm_silu", partial(triton_norm_silu.norm_silu, x, bias, out)),
        (triton_add, "_add", partial(triton_add.add_bias_and_residual, out, bias, x)),
    ]:
        [compiled] = compile_launches(module, kernel, launch)
        # Sixteen bytes at a time, there and back.
        assert any("LDG.E.128" in line for line in compiled.instructions)
        assert any("STG.E.128" in line for line in compiled.instructions)
        assert not any(spilled(line) for line in compiled.instructions)


def spilled(instruction: str) -> bool:
    return " LDL" in instruction or " STL" in instruction
