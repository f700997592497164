"""One graph of a whole call, and steps of a stream whose caches are tensors, give what the calls give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import random_vae, small_config
from wan_vae import UserError, WanVAE
from wan_vae.inference.passes import Direction
from wan_vae.integrations.export import export_steps

CONFIGS = {
    "wan2.1": small_config(),
    "wan2.2": small_config(level_shortcuts=True, patch_size=2, width_multipliers=(1, 1)),
}


def chained(first: Any, following: Any, x: Tensor, unit: int) -> Tensor:
    """Run the steps on a clip, and join their results."""
    result, *caches = first(x[:, :, :1].contiguous())
    results = [result]
    for chunk in x[:, :, 1:].split(unit, dim=2):
        result, *caches = following(chunk.contiguous(), *caches)
        results.append(result)
    return torch.cat(results, dim=2)


def clip_of(vae: WanVAE, direction: Direction, latents: int, height: int, width: int) -> tuple[Tensor, Tensor, int]:
    """Return an input of a size in latents, the call's result for it, and the input's frames per latent."""
    config = vae.config
    side, unit = config.spatial_compression, config.temporal_compression
    with torch.no_grad():
        if direction == "encode":
            video = torch.rand(1, 3, 1 + unit * (latents - 1), height * side, width * side) * 2 - 1
            return video, vae.encode(video), unit
        z = torch.randn(1, config.latent_channels, latents, height, width)
        return z, vae.decode(z), 1


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_compiled_call_is_one_graph_for_many_sizes(direction: Direction) -> None:
    vae = random_vae(CONFIGS["wan2.1"], torch.float32)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(getattr(vae, direction), fullgraph=True, dynamic=True, backend=backend)
    for size in ((3, 2, 3), (4, 5, 4), (5, 3, 6)):
        x, expected, _ = clip_of(vae, direction, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-5)
    assert len(graphs) <= 2  # the first size may be taken for the only one


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", CONFIGS)
def test_exported_steps_in_a_row_give_the_whole_clip(direction: Direction, name: str) -> None:
    vae = random_vae(CONFIGS[name], torch.float32)
    side = vae.config.spatial_compression
    steps = [
        step.module()
        for step in export_steps(vae, direction, height=2 * side, width=3 * side, dynamic=name == "wan2.1")
    ]
    for size in [(4, 2, 3), (2, 4, 5)][: 2 if name == "wan2.1" else 1]:
        x, expected, unit = clip_of(vae, direction, *size)
        torch.testing.assert_close(chained(*steps, x, unit), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_steps_compiled_ahead_of_time_give_the_whole_clip(tmp_path: Path) -> None:
    vae = random_vae(CONFIGS["wan2.1"], torch.float32)
    side = vae.config.spatial_compression
    steps = []
    for number, step in enumerate(export_steps(vae, "decode", height=2 * side, width=3 * side)):
        package = torch._inductor.aoti_compile_and_package(step, package_path=str(tmp_path / f"{number}.pt2"))
        steps.append(torch._inductor.aoti_load_package(package))
    z, expected, _ = clip_of(vae, "decode", 3, 2, 3)
    torch.testing.assert_close(chained(*steps, z, 1), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_steps_as_onnx_give_the_whole_clip(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    vae = random_vae(CONFIGS["wan2.1"], torch.float32)
    side = vae.config.spatial_compression

    def session(number: int, step: torch.export.ExportedProgram) -> Any:
        path = tmp_path / f"{number}.onnx"
        torch.onnx.export(step, dynamo=True).save(path)
        loaded = runtime.InferenceSession(path)
        names = [given.name for given in loaded.get_inputs()]

        def run(*tensors: Tensor) -> list[Tensor]:
            given = dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True))
            return [torch.from_numpy(np.asarray(result)) for result in loaded.run(None, given)]

        return run

    programs = export_steps(vae, "decode", height=2 * side, width=3 * side)
    steps = [session(number, step) for number, step in enumerate(programs)]
    z, expected, _ = clip_of(vae, "decode", 3, 2, 3)
    torch.testing.assert_close(chained(*steps, z, 1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "encod"}, "The direction is 'encod'"),
        ({"latents": 0}, "latents is 0"),
        ({"height": 9}, "9"),
    ],
)
def test_export_of_impossible_arguments_is_refused(arguments: dict[str, Any], message: str) -> None:
    vae = random_vae(CONFIGS["wan2.1"], torch.float32)
    with pytest.raises(UserError, match=message):
        export_steps(vae, **{"direction": "encode", "height": 16, "width": 16} | arguments)
    pictures = random_vae(small_config(images_only=True, temporal_downsample=(False,)), torch.float32)
    with pytest.raises(UserError, match="takes single pictures"):
        export_steps(pictures, "encode", height=16, width=16)
    with pytest.raises(UserError, match="training mode"):
        export_steps(vae.train(), "encode", height=16, width=16)
