"""The nodes: what they describe, and what they make of videos, images and files."""

import asyncio
import importlib.util
import json
import re
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import wan_vae
from tests.comfyui.conftest import CHECKOUT, Comfy
from wan_vae import UserError, WanVAE
from wan_vae.io import load_latents

IMAGES = torch.rand(6, 35, 50, 3, generator=torch.Generator().manual_seed(0))
AUDIO = {"waveform": torch.zeros(1, 2, 100), "sample_rate": 48000}


@pytest.fixture(scope="module")
def nano(comfy: Comfy) -> Any:
    return comfy.nodes.Load.execute("nano", "fp32").args[0]


def video_of(comfy: Comfy, **changes: Any) -> Any:
    components = {"images": IMAGES, "audio": AUDIO, "frame_rate": Fraction(24)} | changes
    return comfy.latest.InputImpl.VideoFromComponents(comfy.latest.Types.VideoComponents(**components))


def test_entrypoint_gives_nodes_that_are_described(comfy: Comfy) -> None:
    extension = asyncio.run(comfy.nodes.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    schemas = [node.define_schema() for node in nodes]
    assert len(nodes) == 6
    assert len({schema.node_id for schema in schemas}) == 6
    for schema in schemas:
        assert schema.display_name.startswith("Wan VAE: ")
        assert schema.description
    if CHECKOUT:
        for node in nodes:
            node.GET_SCHEMA()


def test_video_becomes_latents_and_a_video_of_its_size_with_its_sound(comfy: Comfy, nano: Any) -> None:
    (latent,) = comfy.nodes.EncodeVideo.execute(video_of(comfy), nano, "auto").args
    assert latent["samples"].shape == (1, 16, 3, 5, 7)
    video, images = comfy.nodes.DecodeVideo.execute(latent, nano, "1GiB", 0.0).args
    components = video.get_components()
    assert components.images.data_ptr() == images.data_ptr()
    assert images.shape == IMAGES.shape
    assert components.audio is AUDIO
    assert components.frame_rate == 24


def test_images_become_the_same_latents_without_rate_or_sound(comfy: Comfy, nano: Any) -> None:
    (expected,) = comfy.nodes.EncodeVideo.execute(video_of(comfy), nano, "auto").args
    (latent,) = comfy.nodes.EncodeVideo.execute(IMAGES, nano, "auto").args
    assert torch.equal(latent["samples"], expected["samples"])
    other = {"waveform": torch.ones(1, 1, 9), "sample_rate": 8000}
    components = comfy.nodes.DecodeVideo.execute(latent, nano, "auto", 0.0, other).args[0].get_components()
    assert components.frame_rate == 16
    assert components.audio is other


def test_decode_video_takes_the_given_rate(comfy: Comfy, nano: Any) -> None:
    video, images = comfy.nodes.DecodeVideo.execute({"samples": torch.zeros(1, 16, 2, 2, 2)}, nano, "auto", 30.0).args
    assert video.get_components().frame_rate == 30
    assert images.shape == (5, 16, 16, 3)


def test_encode_video_accelerates_comfyuis_own_vae_by_itself(comfy: Comfy, ours: WanVAE, theirs: Any) -> None:
    (latent,) = comfy.nodes.EncodeVideo.execute(IMAGES[:5, :32, :48], theirs(), "auto").args
    video = IMAGES[None, :5, :32, :48].movedim(-1, 1) * 2 - 1
    torch.testing.assert_close(latent["samples"], ours.posterior(video).mean, rtol=0, atol=1e-5)


def test_latents_saved_by_a_node_are_loaded_by_a_node(comfy: Comfy, nano: Any) -> None:
    (latent,) = comfy.nodes.EncodeVideo.execute(video_of(comfy), nano, "auto").args
    saved = comfy.nodes.SaveLatents.execute(latent, nano, "some/name", 0.0)
    (result,) = saved.ui["latents"]
    path = comfy.base / "output" / result["subfolder"] / result["filename"]
    assert re.fullmatch(r"some/name_\d{5}_\.safetensors", str(path.relative_to(comfy.base / "output")))
    normalized, info = load_latents(path)
    torch.testing.assert_close(normalized, nano.network.normalize(latent["samples"]), rtol=0, atol=0)
    assert info.checkpoint == WanVAE.from_pretrained("nano").digest()
    shutil.copy(path, comfy.base / "input" / "copy.safetensors")
    assert comfy.nodes.LoadLatents.validate_inputs("copy.safetensors") is True
    loaded, fps = comfy.nodes.LoadLatents.execute("copy.safetensors").args
    torch.testing.assert_close(loaded["samples"], latent["samples"], rtol=0, atol=1e-5)
    assert fps == 24.0
    assert comfy.nodes.DecodeVideo.execute(loaded, nano, "auto", 0.0).args[1].shape == IMAGES.shape
    again = comfy.nodes.SaveLatents.execute(latent, nano, "some/name", 0.0)
    assert again.ui["latents"][0]["filename"] != result["filename"]


def test_load_takes_files_of_models_vae_and_paths(comfy: Comfy, ours: WanVAE, tmp_path: Path) -> None:
    for path in (comfy.base / "models" / "vae" / "mine.safetensors", tmp_path / "elsewhere.safetensors"):
        ours.save(path)
    first = comfy.nodes.Load.execute("mine.safetensors", "bf16").args[0]
    second = comfy.nodes.Load.execute("nano", "fp32", f" {tmp_path / 'elsewhere.safetensors'} ").args[0]
    assert first.network.config == second.network.config == ours.config
    assert (first.vae_dtype, second.vae_dtype) == (torch.bfloat16, torch.float32)
    before = comfy.nodes.Load.fingerprint_inputs("mine.safetensors", "bf16")
    ours.save(comfy.base / "models" / "vae" / "mine.safetensors")
    assert comfy.nodes.Load.fingerprint_inputs("mine.safetensors", "bf16") != before
    assert comfy.nodes.Load.fingerprint_inputs("nano", "bf16") == "nano"


def test_inputs_that_other_nodes_compute_load_nothing_again(comfy: Comfy) -> None:
    for inputs in ((None, "bf16", ""), ("nano", "bf16", None), ("nano", None, "")):
        assert comfy.nodes.Load.fingerprint_inputs(*inputs) == comfy.nodes.Load.fingerprint_inputs(*inputs)
    assert comfy.nodes.LoadLatents.fingerprint_inputs(None) == comfy.nodes.LoadLatents.fingerprint_inputs(None)


def test_load_of_nothing_is_an_error_that_says_what_would_work(comfy: Comfy) -> None:
    with pytest.raises(UserError, match="neither a file, a folder, a trained model"):
        comfy.nodes.Load.execute("nano", "auto", "/no/such/file.safetensors")


@pytest.mark.parametrize("memory", ["auto", "4GiB", "100000000", None])
def test_budgets_are_accepted_before_anything_runs(comfy: Comfy, memory: str | None) -> None:
    assert comfy.nodes.EncodeVideo.validate_inputs(memory) is True


def test_memory_that_is_no_budget_is_refused_before_anything_runs(comfy: Comfy) -> None:
    for node in (comfy.nodes.EncodeVideo, comfy.nodes.DecodeVideo):
        assert "write bytes" in node.validate_inputs("much")
    assert comfy.nodes.LoadLatents.validate_inputs("no.safetensors") == "no.safetensors is not in the input folder."


def test_pack_without_the_package_says_what_it_needs(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wan_vae", None)
    place = Path(comfy.nodes.__file__).parent / "__init__.py"
    spec = importlib.util.spec_from_file_location("pack", place)
    with pytest.raises(ImportError, match="need wan-vae in ComfyUI's Python"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_metadata_is_what_comfyui_reads(comfy: Comfy) -> None:
    folder = Path(comfy.nodes.__file__).parent
    assert f'version = "{wan_vae.__version__}"' in (folder / "pyproject.toml").read_text(encoding="utf-8")
    if CHECKOUT:
        from comfy_config.config_parser import extract_node_configuration

        read = extract_node_configuration(str(folder))
        assert (read.project.version, read.project.dependencies) == (wan_vae.__version__, ["wan-vae"])
        assert read.tool_comfy.display_name == "Wan VAE"
        assert read.project.supported_comfyui_version == ">=0.3.64"


# The widgets of ComfyUI's own nodes, in the order of their values in a graph.
WIDGETS = {
    "LoadVideo": ["file", None],
    "VAELoader": ["vae_name"],
    "CreateVideo": ["fps"],
    "SaveVideo": ["filename_prefix", "format", "codec"],
}


@pytest.mark.parametrize("name", ["accelerate", "round_trip"])
def test_graph_and_api_form_of_a_workflow_are_the_same(comfy: Comfy, name: str) -> None:
    folder = Path(comfy.nodes.__file__).parent / "example_workflows"
    graph, api = (json.loads((place / f"{name}.json").read_text()) for place in (folder, folder / "api"))
    nodes = asyncio.run(asyncio.run(comfy.nodes.comfy_entrypoint()).get_node_list())
    widgets = dict(WIDGETS)
    for schema in (node.define_schema() for node in nodes):
        linked = ("video", "vae", "samples", "audio")
        widgets[schema.node_id] = [given.id for given in schema.inputs if given.id not in linked]
    sources = {link: [str(node), slot] for link, node, slot, *_ in graph["links"]}
    made = {}
    for node in graph["nodes"]:
        inputs = dict(zip(widgets.get(node["type"], []), node["widgets_values"], strict=True))
        inputs.pop(None, None)
        inputs |= {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        made[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
        for slot, output in enumerate(node["outputs"]):
            assert all(sources[link] == [str(node["id"]), slot] for link in output["links"])
    assert made == api


def test_readme_names_every_node(comfy: Comfy) -> None:
    text = (Path(comfy.nodes.__file__).parent / "README.md").read_text(encoding="utf-8")
    nodes = asyncio.run(asyncio.run(comfy.nodes.comfy_entrypoint()).get_node_list())
    assert all(f"*{node.define_schema().display_name}*" in text for node in nodes)
