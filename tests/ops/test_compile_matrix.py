"""The Triton kernels, compiled for GPUs that need not be there, from the launches of the package's own code."""

from collections import defaultdict
from collections.abc import Iterator

import pytest

pytest.importorskip("triton", reason="the GPU kernels need Triton, which PyTorch for this machine comes without")

from tests.ops.ahead_of_time import SHARED_MEMORY, Launch, compiled, launches
from wan_vae.config import load_config, preset_names

HOPPER = 90
FAST = ("lightvae",)  # whose widths are the least even
BYTES = 2  # of a value in bfloat16


def parameters(fast: tuple[object, ...], slow: tuple[object, ...]) -> list[object]:
    return [*fast, *(pytest.param(each, marks=pytest.mark.slow) for each in slow)]


@pytest.fixture(scope="module", autouse=True)
def own_compiler_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DISABLE_LINE_INFO", "1")  # compiles faster
        yield


def different(found: tuple[Launch, ...]) -> list[Launch]:
    """Return one launch of each program, the largest one."""
    kept: dict[tuple[object, ...], Launch] = {}
    for launch in found:
        if launch.code not in kept or kept[launch.code].size < launch.size:
            kept[launch.code] = launch
    return list(kept.values())


@pytest.mark.parametrize("preset", parameters(FAST, tuple(sorted({*preset_names()} - {*FAST}))))
def test_passes_over_memory_move_16_bytes_at_a_time(preset: str) -> None:
    checked = set()
    for launch in different(launches(preset, HOPPER)):
        channels = launch.arguments.get("channels")
        if launch.is_tuned or (BYTES * channels) % 16 != 0:
            continue
        code = compiled(launch, HOPPER)
        assert any(".128" in line for line in code.named("LDG")), launch.code
        assert all(".128" in line for line in code.named("STG")), launch.code
        assert not code.spills, launch.code
        checked.add(channels)
    assert load_config(preset).decoder_width in checked


def convolutions(preset: str) -> list[Launch]:
    found = [launch for launch in different(launches(preset, HOPPER)) if launch.is_tuned]
    assert {launch.module for launch in found} == {"conv3d_descriptors", "conv3d_pointers"}
    return found


# Past the registers: by the copy engine, or from where single addresses say.
LOADS = {"conv3d_descriptors": "UTMALDG", "conv3d_pointers": "LDGSTS"}


@pytest.mark.parametrize("preset", parameters((), tuple(preset_names())))
def test_convolutions_for_hopper_use_its_tensor_cores_and_never_spill(preset: str) -> None:
    for launch in convolutions(preset):
        code = compiled(launch, HOPPER)
        assert code.named("HGMMA"), launch.code  # four warps multiply at once
        assert not code.spills, launch.code
        channels, depth = (launch.arguments[name] for name in ("in_channels", "block_depth"))
        steps = launch.size[1] // channels * -(-channels // depth)  # a sum of one has no loop that could load ahead
        if launch.module == "conv3d_descriptors" or (channels % 16 == 0 and steps > 1):
            assert code.named(LOADS[launch.module]), launch.code


@pytest.mark.parametrize("module", LOADS)
def test_convolution_of_96_channels_for_hopper_loads_while_it_multiplies(module: str) -> None:
    found = [launch for launch in launches("wan2.1", HOPPER) if launch.module == module]
    sizes = [(launch.arguments["in_channels"], launch.arguments["out_channels"]) for launch in found]
    wide = [launch for launch, channels in zip(found, sizes, strict=True) if channels == (96, 96)]
    code = compiled(max(wide, key=lambda launch: launch.size), HOPPER)
    assert any(LOADS[module] in line for line in code.loop_around("HGMMA"))
    assert not code.spills


@pytest.mark.parametrize("architecture", parameters((), tuple(SHARED_MEMORY)))
def test_kernels_fit_the_shared_memory_of_a_chip_and_some_convolution_is_left_to_the_tuner(architecture: int) -> None:
    found = launches("wan2.1", architecture)
    sizes = {launch.code: compiled(launch, architecture).shared_memory for launch in different(found)}
    fits = defaultdict(list)
    for launch in found:
        if launch.is_tuned:  # the tuner drops those that do not fit
            fits[launch.operation].append(sizes[launch.code] <= SHARED_MEMORY[architecture])
        else:
            assert sizes[launch.code] <= SHARED_MEMORY[architecture], launch.code
    assert fits
    assert all(any(each) for each in fits.values())
