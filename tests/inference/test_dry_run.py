"""Plans for models that were subclassed or altered, and dry runs that are not repeated."""

import gc
import re
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_config
from wan_vae import UserError, VAEConfig, WanVAE
from wan_vae.inference import dry_run, planner
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d, NormSiLU, PaddedInput
from wan_vae.ops import conv3d, triton
from wan_vae.ops.memory_estimator import MemoryEstimator
from wan_vae.ops.norm_silu import norm_silu_into


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


def test_plan_of_a_model_with_hooks_counts_what_they_are_called_with() -> None:
    vae = random_vae(small_config())
    size = {"frames": 5, "height": 32, "width": 32, "memory": "1GiB"}
    before = vae.plan("decode", **size).peak
    for module in vae.modules():
        if isinstance(module, NormSiLU):
            module.register_forward_hook(lambda module, inputs, output: None)
    assert vae.plan("decode", **size).peak > before


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_plans_do_not_keep_their_model(direction: str) -> None:
    vae = random_vae(small_config())
    vae.plan(direction, frames=5, height=8, width=8, memory="1GiB")
    model = weakref.ref(vae)
    weights = [weakref.ref(weight) for weight in vae.parameters()]
    del vae
    gc.collect()
    assert model() is None
    assert not any(weight() is not None for weight in weights)


def test_plan_with_an_unknown_direction_raises() -> None:
    with pytest.raises(UserError, match="direction is 'encod'; it must be 'encode' or 'decode'"):
        random_vae(small_config()).plan("encod", frames=1, height=4, width=4, memory="1GiB")


def peak_on(device: str, channels: int = 8) -> int:
    """Return the predicted peak of decoding pictures whose norms and convolutions take more than all else."""
    vae = random_vae(small_config(encoder_width=channels, decoder_width=channels), torch.float32)
    return vae.plan("decode", frames=5, height=512, width=512, memory="64GiB", latents_per_pass=1, device=device).peak


@pytest.mark.parametrize("height", [8, 2**13])  # a part of what norms take at a time, and more
def test_dry_run_without_triton_counts_the_temporary_tensors_of_norms(
    height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, gamma = torch.empty(1, 8, 3, height, 512, device="meta"), torch.empty(8, device="meta")

    def taken(device: str) -> int:
        with MemoryEstimator(torch.device(device), [x, gamma]) as estimator:
            norm_silu_into(x, x, gamma)
        assert estimator.allocated == 0
        return estimator.peak

    plain = 6 * 4 * min(8 * height * 512, 2**24)
    assert (taken("cuda"), taken("mps"), taken("cpu")) == (0, plain, 0)
    monkeypatch.setattr(triton, "_verdicts", {torch.device("cuda", 0): False})
    assert (taken("cuda"), taken("cuda:0"), taken("cuda:1")) == (plain, plain, 0)


@pytest.mark.usefixtures("tiny_units")
def test_plan_for_a_gpu_without_the_package_triton_is_that_for_plain_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    device, there = torch.device("cuda"), triton.importlib.util.find_spec
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None if name == "triton" else there(name))
    assert triton.expects_triton(device, torch.float32)  # a GPU elsewhere
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not triton.expects_triton(device, torch.float32)
    assert not triton.expects_triton(torch.device("mps"), torch.float32)


def test_cudnn_is_allowed_a_fixed_part_and_copies_of_tensors_without_eights_of_channels() -> None:
    eights, frames = torch.empty(1, 16, 2, 4, 4, device="meta"), torch.empty(1, 3, 2, 4, 4, device="meta")
    fixed = conv3d.cudnn_workspace(eights, eights)
    assert fixed == 2**26
    assert conv3d.cudnn_workspace(frames, eights) - fixed == 4 * 8 * 2 * 4 * 4
    assert conv3d.cudnn_workspace(eights, frames) - fixed == 4 * 8 * 2 * 4 * 4


def test_plan_for_a_gpu_takes_tiles_where_a_convolution_would_have_2_to_the_31_elements() -> None:
    with torch.device("meta"):
        vae = WanVAE.from_config("wan2.1").to(torch.bfloat16).eval().requires_grad_(False)
    plans = [
        vae.plan("decode", frames=5, height=height, width=3840, memory="100GiB", device="cuda")
        for height in (720, 2160)
    ]
    assert [plan.tiling is None for plan in plans] == [True, False]


@pytest.mark.usefixtures("tiny_units")
def test_plan_for_a_gpu_counts_the_workspaces_of_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = peak_on("cuda")
    monkeypatch.setattr(conv3d, "cudnn_workspace", lambda x, out: 0)
    monkeypatch.setattr(dry_run, "_requests", type(dry_run._requests)())
    assert 0.5 * 2**26 < counted - peak_on("cuda") <= 1.06 * (2**26 + 2 * 4 * 8 * 4 * 512 * 512)
