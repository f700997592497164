"""A ComfyUI server on the CPU with the pack in custom_nodes runs the example workflows by POST /prompt.

Needs WAN_VAE_COMFYUI, the folder of a checkout whose requirements are installed. It prints what `pytest -s` shows.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.comfyui.conftest import CHECKOUT
from tests.helpers import random_vae
from tests.io.sources import encode, rgb_frames, smooth_pictures
from wan_vae import WanVAE, decode_file
from wan_vae.config import load_config
from wan_vae.io import load_latents, open_clip

pytestmark = pytest.mark.skipif(CHECKOUT is None, reason="WAN_VAE_COMFYUI names no checkout of ComfyUI")

REPOSITORY = Path(__file__).parents[2]
WORKFLOWS = REPOSITORY / "comfyui" / "example_workflows" / "api"
PROBE = """
import os, folder_paths, safetensors.torch

class KeepTensor:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"name": ("STRING",)}, "optional": {
        "images": ("IMAGE",), "samples": ("LATENT",)}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "tests", True

    def keep(self, name, images=None, samples=None):
        tensor = samples["samples"] if images is None else images
        path = os.path.join(folder_paths.get_output_directory(), name + ".safetensors")
        safetensors.torch.save_file({"tensor": tensor.contiguous()}, path)
        return {}

NODE_CLASS_MAPPINGS = {"KeepTensor": KeepTensor}
"""


class Server:
    """A running server and its folders."""

    def __init__(self, base: Path, port: int) -> None:
        self.base = base
        self._address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self._address + path, timeout=60) as reply:
            return json.load(reply)

    def run(self, workflow: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Run a workflow, and return its outputs by node, and seconds; a RuntimeError with ComfyUI's message."""
        body = json.dumps({"prompt": workflow}).encode()
        request = urllib.request.Request(self._address + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                prompt = json.load(reply)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error
        while not (history := self.get(f"/history/{prompt}")):
            time.sleep(0.1)
        messages = dict(history[prompt]["status"]["messages"])
        if "execution_error" in messages:
            raise RuntimeError(messages["execution_error"]["exception_message"])
        took = messages["execution_success"]["timestamp"] - messages["execution_start"]["timestamp"]
        return history[prompt]["outputs"], took / 1000

    def kept(self, name: str) -> torch.Tensor:
        return load_file(self.base / "output" / f"{name}.safetensors")["tensor"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("server")
    for folder in ("input", "output", "models/vae", "custom_nodes", "user", "temp"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / "wan_vae").symlink_to(REPOSITORY / "comfyui")
    (base / "custom_nodes" / "probe.py").write_text(PROBE)
    for name, shift in (("warm.mp4", 0), ("clip.mp4", 5)):
        pictures = smooth_pictures(11, 64, 72)[shift : shift + 6]
        encode(
            base / "input" / name,
            rgb_frames(pictures, "yuv420p"),
            codec="libx264",
            audio_codec="aac",
            rate=Fraction(12),
        )
    # Not every version of ComfyUI takes a narrower one.
    checkpoint = base / "models" / "vae" / "wan_2.1_vae.safetensors"
    random_vae(load_config("wan2.1"), torch.float32).save(checkpoint)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--cpu", "--listen", "127.0.0.1", "--port", port, "--base-directory", base, "--disable-api-nodes"]
    command = [sys.executable, "main.py", *options, "--database-url", "sqlite:///:memory:"]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, command)], cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log
        )
        try:
            started = Server(base, port)
            _wait(started, process, base / "log")
            yield started
        finally:
            process.terminate()
            process.wait(timeout=60)
            checkpoint.unlink()  # half a gigabyte, and pytest keeps its folders


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            server.get("/object_info/WanVAELoad")
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def workflow(name: str, **changes: Any) -> dict[str, Any]:
    return json.loads((WORKFLOWS / name).read_text()) | changes


def test_templates_of_the_pack_are_listed(server: Server) -> None:
    assert sorted(server.get("/workflow_templates")["wan_vae"]) == ["accelerate", "round_trip"]


def test_accelerated_workflow_gives_what_comfyui_gives_and_faster(server: Server) -> None:
    seconds = {}
    for clip in ("warm.mp4", "clip.mp4"):  # the first run of each loads the weights
        for kind, vae in (("theirs", ["3", 0]), ("ours", ["4", 0])):
            prompt = workflow(
                "accelerate.json",
                k1={"class_type": "KeepTensor", "inputs": {"name": f"latents_{kind}", "samples": ["5", 0]}},
                k2={"class_type": "KeepTensor", "inputs": {"name": f"images_{kind}", "images": ["6", 0]}},
            )
            prompt["1"]["inputs"]["file"] = clip
            for node in ("5", "6"):
                prompt[node]["inputs"]["vae"] = vae
            outputs, seconds[kind] = server.run(prompt)
            assert outputs["8"]["images"][0]["filename"].endswith(".mp4")
    differences = {}
    for name, shape in (("latents", (1, 16, 2, 8, 9)), ("images", (5, 64, 72, 3))):
        theirs, ours = server.kept(f"{name}_theirs"), server.kept(f"{name}_ours")
        assert tuple(theirs.shape) == shape
        assert theirs.std() > 0.01
        differences[name] = (ours - theirs).abs().max().item()
    version = server.get("/system_stats")["system"]["comfyui_version"]
    print(
        f"\nComfyUI {version}, 6 frames of 72x64, Wan2.1, float32: its own VAE {seconds['theirs']:.2f} s, accelerated"
        f" {seconds['ours']:.2f} s; largest difference: latents {differences['latents']:.1e}, pictures"
        f" {differences['images']:.1e}"
    )
    assert max(differences.values()) < 1e-5
    assert seconds["ours"] < seconds["theirs"]


def test_tiled_workflow_gives_whole_pictures(server: Server) -> None:
    tile = {"tile_size": 64, "overlap": 16, "temporal_size": 8, "temporal_overlap": 4}
    prompt = workflow("accelerate.json")
    prompt["5"]["class_type"], prompt["6"]["class_type"] = "VAEEncodeTiled", "VAEDecodeTiled"
    for node in ("5", "6"):
        prompt[node]["inputs"] |= tile
    prompt["k"] = {"class_type": "KeepTensor", "inputs": {"name": "tiled", "images": ["6", 0]}}
    server.run(prompt)
    whole = workflow("accelerate.json")
    whole["k"] = {"class_type": "KeepTensor", "inputs": {"name": "whole", "images": ["6", 0]}}
    server.run(whole)
    torch.testing.assert_close(server.kept("tiled"), server.kept("whole"), rtol=0, atol=1e-5)


def test_round_trip_workflow_keeps_size_length_rate_and_sound(server: Server, tmp_path: Path) -> None:
    outputs, _ = server.run(workflow("round_trip.json"))
    (saved,) = outputs["6"]["images"]
    with open_clip(server.base / "output" / saved["subfolder"] / saved["filename"]) as clip:
        info = clip.info
    assert (info.frames, info.width, info.height, info.fps, info.has_audio) == (6, 72, 64, 12, True)
    (file,) = outputs["4"]["latents"]
    path = server.base / "output" / file["subfolder"] / file["filename"]
    latents, facts = load_latents(path)
    nano = WanVAE.from_pretrained("nano")
    assert latents.shape == (1, 16, 3, 8, 9)
    assert (facts.frames, facts.fps, facts.checkpoint) == (6, 12, nano.digest())
    assert decode_file(path, tmp_path / "clip.mkv", nano).frames == 6
    # The file goes on in another workflow.
    (server.base / "input" / "again.safetensors").write_bytes(path.read_bytes())
    prompt = workflow("round_trip.json")
    prompt["3"] = {"class_type": "WanVAELoadLatents", "inputs": {"file": "again.safetensors"}}
    del prompt["1"], prompt["4"]
    outputs, _ = server.run(prompt)
    assert outputs["6"]["images"]


def test_images_and_budgets_reach_the_nodes(server: Server) -> None:
    prompt = workflow("round_trip.json", parts={"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}})
    prompt["3"]["inputs"] |= {"video": ["parts", 0], "memory": "1GiB"}
    assert server.run(prompt)[0]["6"]["images"]
    prompt["3"]["inputs"]["memory"] = "much"
    with pytest.raises(RuntimeError, match="write bytes, a number with a unit such as 4GiB"):
        server.run(prompt)


def test_vae_of_another_kind_ends_the_workflow_with_one_sentence(server: Server) -> None:
    prompt = workflow("accelerate.json")
    prompt["3"]["inputs"]["vae_name"] = "pixel_space"
    with pytest.raises(RuntimeError, match=r"^This VAE cannot be accelerated: it is no Wan VAE: .*; bypass this node"):
        server.run(prompt)
