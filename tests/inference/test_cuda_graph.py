"""Streams with CUDA graphs, on a CPU: the graph is replaced by one that computes at once, or fails."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers import random_latents, random_vae, small_config
from wan_vae import DecodeStream, WanVAE
from wan_vae.inference import passes
from wan_vae.ops import cuda_graph

LATENTS = 8


class Graph:
    """Computes with the weights of the time of its capture, as a graph that knows only addresses may."""

    made = 0

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        Graph.made += 1
        self._function, self._shape = function, x.shape
        self._weights = [weight.data_ptr() for weight in Graph.model.parameters()]

    def supports(self, x: Tensor) -> bool:
        return x.shape == self._shape

    def __call__(self, x: Tensor) -> Tensor:
        assert self._weights == [weight.data_ptr() for weight in Graph.model.parameters()], "it would read old weights"
        return self._function(x)

    model: WanVAE


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> WanVAE:
    monkeypatch.setattr(passes, "can_capture", lambda device: device not in cuda_graph._given_up)
    monkeypatch.setattr(cuda_graph, "_given_up", set())
    monkeypatch.setattr(passes, "CudaGraph", Graph)
    Graph.made, Graph.model = 0, random_vae(small_config())
    return Graph.model


def frames_of(stream: DecodeStream, latents: Tensor) -> Tensor:
    parts = [stream.push(latent) for latent in latents.split(1, dim=2)]
    return torch.cat([part for part in parts if part is not None], dim=2)


@torch.no_grad()
def test_stream_with_a_graph_gives_the_same_frames(vae: WanVAE) -> None:
    latents = random_latents(vae.config, LATENTS, 2, 3)
    found = frames_of(DecodeStream(vae, latents_per_pass=1), latents)
    assert Graph.made == 1
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(passes, "can_capture", lambda device: False)
        assert torch.equal(found, frames_of(DecodeStream(vae, latents_per_pass=1), latents))
    assert Graph.made == 1


@torch.no_grad()
def test_capture_that_fails_leaves_the_stream_its_frames_and_is_said_once(
    vae: WanVAE, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    latents = random_latents(vae.config, LATENTS, 2, 3)
    tried = 0

    def failing(function: Callable[[Tensor], Tensor], x: Tensor) -> Graph:
        nonlocal tried
        tried += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    expected = frames_of(DecodeStream(vae, latents_per_pass=1), latents)
    monkeypatch.setattr(passes, "CudaGraph", failing)
    for _ in range(2):
        assert torch.equal(frames_of(DecodeStream(vae, latents_per_pass=1), latents), expected)
    assert tried == 1
    (record,) = caplog.records
    assert record.message.endswith("run slower: operation not permitted when stream is capturing")


@pytest.mark.parametrize("assign", [False, True])
@torch.no_grad()
def test_weights_that_move_during_a_stream_are_captured_again(vae: WanVAE, assign: bool) -> None:
    latents = random_latents(vae.config, LATENTS, 2, 3)
    expected = frames_of(DecodeStream(vae, latents_per_pass=1), latents)
    Graph.made = 0
    stream = DecodeStream(vae, latents_per_pass=1)
    parts = [frames_of(stream, latents[:, :, :5])]
    if assign:
        vae.load_state_dict({name: weight.clone() for name, weight in vae.state_dict().items()}, assign=True)
    else:
        for weight in vae.parameters():
            weight.data = weight.data.clone()
    parts.append(frames_of(stream, latents[:, :, 5:]))
    assert torch.equal(torch.cat(parts, dim=2), expected)
    assert Graph.made == 2
