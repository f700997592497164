"""ComfyUI for the tests: that of the folder in WAN_VAE_COMFYUI, else stand-ins for the modules the pack imports."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.comfyui import stubs
from tests.helpers import random_vae
from wan_vae import VAEConfig, WanVAE
from wan_vae.config import load_config

CHECKOUT = os.environ.get("WAN_VAE_COMFYUI")


@dataclass
class Comfy:
    """ComfyUI's modules and the pack's; `base` has the folders input, output and models/vae."""

    base: Path
    sd: Any
    nodes: Any
    vae: Any
    latest: Any


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("input", "output", "models/vae"):
        (base / folder).mkdir(parents=True)
    known = set(sys.modules)
    if CHECKOUT:
        sys.path.insert(1, CHECKOUT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["main.py", "--cpu", "--base-directory", str(base)])
            import comfy.options

            comfy.options.enable_args_parsing()
            import comfy.cli_args
    else:
        sys.modules.update(stubs.modules(base))
    import comfy.sd
    import comfy_api.latest

    import comfyui.nodes
    import comfyui.vae

    yield Comfy(base, comfy.sd, comfyui.nodes, comfyui.vae, comfy_api.latest)
    if CHECKOUT:
        sys.path.remove(CHECKOUT)
    for name in set(sys.modules) - known:
        if name.split(".")[0] in ("comfy", "comfy_api", "comfyui", "folder_paths"):
            del sys.modules[name]


@pytest.fixture(scope="session", params=["wan2.1", "wan2.2"])
def ours(request: pytest.FixtureRequest) -> WanVAE:
    """A narrow VAE of Wan's structure with random weights."""
    values = load_config(request.param).to_dict() | {"encoder_width": 4, "decoder_width": 6}
    if request.param == "wan2.1":
        values["encoder_width"] = values["decoder_width"]
    return random_vae(VAEConfig(**values), torch.float32)


@pytest.fixture(params=[stubs.OLD, stubs.NEW])
def theirs(
    request: pytest.FixtureRequest, comfy: Comfy, ours: WanVAE, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Any]:
    """Make ComfyUI's own VAE of the same weights, in each of the ways in which versions of ComfyUI call it."""
    if CHECKOUT and request.param == stubs.NEW:
        pytest.skip("a checkout has its own way")
    if CHECKOUT:
        _narrow(ours.config, monkeypatch)
    else:
        monkeypatch.setattr(stubs.VAE, "calls", request.param)
    from wan_vae.checkpoints.layouts import stored_names

    names = stored_names(list(ours.state_dict()), ours.config, "wan")
    return lambda: comfy.sd.VAE(sd={names[name]: weight for name, weight in ours.state_dict().items()})


def _narrow(config: VAEConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ComfyUI build its networks in our widths, which some versions take from the weights and others know."""
    import comfy.ldm.wan.vae
    import comfy.ldm.wan.vae2_2

    for module, widths in (
        (comfy.ldm.wan.vae, {"dim": config.encoder_width}),
        (comfy.ldm.wan.vae2_2, {"dim": config.encoder_width, "dec_dim": config.decoder_width}),
    ):
        build = module.WanVAE
        monkeypatch.setattr(module, "WanVAE", lambda build=build, widths=widths, **given: build(**(given | widths)))
