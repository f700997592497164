import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch

from tests.helpers import random_latents, random_video, relative_difference, small_config
from wan_vae import WanVAE
from wan_vae.benchmark import implementations
from wan_vae.benchmark.implementations import (
    DIFFUSERS,
    WAN_VAE,
    import_error,
    load,
    load_on_meta,
    openvino_computes,
    unsupported_reason,
)
from wan_vae.benchmark.inputs import random_weights
from wan_vae.inference import passes

STYLE = {"width_multipliers": (1, 2, 2), "temporal_downsample": (True, True)}


@pytest.mark.parametrize("changes", [{}, {"level_shortcuts": True, "patch_size": 2}])
def test_load_in_float64_both_compute_the_same(changes: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    config = small_config(**STYLE, **changes)
    WanVAE.from_weights(config, random_weights(config)).save(tmp_path / "weights", layout="diffusers")
    folder, cpu = tmp_path / "weights", torch.device("cpu")
    ours, theirs = (load(name, config, folder, device=cpu, dtype=torch.float64) for name in (WAN_VAE, DIFFUSERS))
    video, latents = random_video(9, 16, 16), random_latents(config, 3, 2, 2)
    with torch.inference_mode():
        assert relative_difference(ours.encode(video), theirs.encode(video)) < 1e-12
        decoded = [each.decode(each.to_decoder_input(latents)) for each in (ours, theirs)]
    assert decoded[0].dtype == decoded[1].dtype == torch.float64
    assert relative_difference(*decoded) < 1e-12


def test_openvino_computes_where_installed_on_cpus_in_fp32_and_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda name: name)
    dtypes = {(device, dtype) for device in ("cpu", "cuda") for dtype in ("fp32", "bf16", "fp16")}
    assert {each for each in dtypes if openvino_computes(*reversed(each))} == {("cpu", "fp32"), ("cpu", "bf16")}
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda name: None)
    assert not openvino_computes("fp32", "cpu")


def test_unsupported_reason_names_what_diffusers_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    assert unsupported_reason(small_config(**STYLE)) is None
    assert "'dense'" in unsupported_reason(small_config(**STYLE, block="dense"))
    assert "always has attention" in unsupported_reason(small_config(**STYLE, middle_attention=False))
    assert "[1, 1, 2]" in unsupported_reason(small_config(**STYLE, blocks_per_level=(1, 1, 2)))
    assert "upscales" in unsupported_reason(small_config(**STYLE, output_upscale=2))
    assert "this model takes 2" in unsupported_reason(small_config())
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in unsupported_reason(small_config(**STYLE))


def test_load_on_meta_passes_have_the_size_of_the_device() -> None:
    config = small_config(**STYLE)
    model = load_on_meta(WAN_VAE, config, device=torch.device("cuda"), dtype=torch.bfloat16)
    with mock.patch.object(passes, "choose_chunk_size", wraps=passes.choose_chunk_size) as chosen:
        model.encode(torch.empty(1, 3, 9, 16, 16, device="meta", dtype=torch.bfloat16))
    device = chosen.call_args.kwargs["device"] or chosen.call_args.args[0].device
    assert device == torch.device("cuda")


def test_load_on_meta_computes_shapes() -> None:
    config = small_config(**STYLE)
    for name in (WAN_VAE, DIFFUSERS) if find_spec("diffusers") else (WAN_VAE,):
        blank = load_on_meta(name, config, device=torch.device("cpu"), dtype=torch.bfloat16)
        with torch.inference_mode():
            video = blank.decode(torch.empty(1, 3, 3, 2, 2, device="meta", dtype=torch.bfloat16))
        assert (video.device.type, video.dtype, tuple(video.shape)) == ("meta", torch.bfloat16, (1, 3, 9, 8, 8))


def test_import_error_of_a_broken_package_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert import_error(WAN_VAE) is None
    monkeypatch.setitem(sys.modules, "diffusers", ModuleType("diffusers"))
    assert (
        import_error(DIFFUSERS) == "diffusers cannot be used (module 'diffusers' has no attribute 'AutoencoderKLWan')"
    )
