"""Plans for models that were subclassed or altered, and dry runs that are not repeated."""

import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_config
from wan_vae import UserError, VAEConfig, WanVAE
from wan_vae.inference import dry_run, planner
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d, PaddedInput


@pytest.fixture
def tiny_units() -> Iterator[None]:
    """Leave out what libraries take, which is more than everything that small models do."""
    saved, planner._LIBRARIES, planner._MEBIBYTE = (planner._LIBRARIES, planner._MEBIBYTE), 0, 1
    yield
    planner._LIBRARIES, planner._MEBIBYTE = saved


class LoRA(nn.Module):
    """A low-rank adapter around a causal convolution."""

    def __init__(self, base: CausalConv3d, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down = CausalConv3d(base.in_channels, rank)
        self.up = nn.Conv3d(rank, base.out_channels, 1)

    def forward(self, x: Tensor | PaddedInput, halo: Halo, skip: Tensor | None = None) -> Tensor:
        assert isinstance(x, Tensor), "an adapter gets the plain input"
        return self.base(x, halo, skip) + self.up(self.down(x, halo))


def wrapped_vae(kind: str) -> WanVAE:
    """Return a VAE in which every 3x3x3 convolution of the levels' blocks is wrapped."""
    vae = random_vae(small_config(encoder_width=8, decoder_width=8))
    for block in [module for module in vae.modules() if hasattr(module, "conv2")]:
        if kind == "LoRA":
            block.conv1, block.conv2 = LoRA(block.conv1), LoRA(block.conv2)
        else:
            parametrizations.weight_norm(block.conv1)
    return vae.double().eval().requires_grad_(False)


@pytest.mark.usefixtures("tiny_units")
@pytest.mark.parametrize("kind", ["LoRA", "weight norm"])
def test_wrapped_convolution_in_every_path_gives_one_result(kind: str) -> None:
    vae = wrapped_vae(kind)
    video, latents = random_video(5, 16, 16), random_latents(vae.config, 3, 8, 8)
    posterior = vae.posterior(video)
    whole, frames = vae.normalize(vae.moments(video, Halo()).chunk(2, dim=1)[0]), vae.decode(latents)
    assert relative_difference(vae.normalize(posterior.mode()), whole) <= 1e-10
    with pytest.raises(UserError, match=r"(\d+)MiB is the smallest that works") as refusal:
        vae.decode(latents, memory=1)
    least = int(re.findall(r"(\d+)MiB", str(refusal.value))[-1])
    assert vae.plan("decode", frames=5, height=16, width=16, memory=least).tiling is not None
    assert relative_difference(vae.decode(latents, memory=least), frames) <= 1e-10
    for call, x, expected in (("encode", video, whole), ("decode", latents, frames)):
        streamed = torch.cat(list(getattr(vae, f"{call}_stream")(x.split(2, dim=2))), dim=2)
        assert relative_difference(streamed, expected) <= 1e-10
    with torch.enable_grad():
        assert relative_difference(vae.decode(latents.clone().requires_grad_(True)).detach(), frames) <= 1e-10


class Subclass(WanVAE):
    """A model that cannot be built from its config alone."""

    def __init__(self, config: VAEConfig, name: str) -> None:
        super().__init__(config)
        self.name = name


def test_encode_with_memory_of_a_subclass_equals_without() -> None:
    vae = Subclass(small_config(), "mine").double().eval().requires_grad_(False)
    video = random_video(3, 4, 4)
    assert torch.equal(vae.encode(video, memory="1GiB"), vae.encode(video))


def test_make_plan_for_the_same_size_runs_dry_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, runs = random_vae(small_config()), []
    request = dry_run._request
    monkeypatch.setattr(dry_run, "_request", lambda *args: runs.append(args[1]) or request(*args))
    video = random_video(3, 12, 20)
    for memory in ("1GiB", 2**29, "auto"):
        vae.encode(video, memory=memory)
        list(vae.encode_stream([video], memory=memory))
    assert len(runs) == 2  # of the clip and of the stream
    vae.encode(random_video(3, 12, 24), memory="1GiB")
    assert len(runs) == 3


def test_make_plan_after_a_convolution_was_wrapped_runs_dry_again() -> None:
    vae, options = random_vae(small_config()), {"frames": 3, "height": 8, "width": 12, "memory": "1GiB"}
    before = vae.plan("decode", **options)
    vae.decoder.middle.block1.conv1 = LoRA(vae.decoder.middle.block1.conv1, rank=512).double()
    assert vae.plan("decode", **options).peak > before.peak


def test_plan_with_an_unknown_direction_raises() -> None:
    with pytest.raises(UserError, match="direction is 'encod'; it must be 'encode' or 'decode'"):
        random_vae(small_config()).plan("encod", frames=1, height=4, width=4, memory="1GiB")
