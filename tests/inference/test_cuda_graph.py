"""Streams with CUDA graphs, on a CPU: the graph is replaced by one that computes at once, or fails."""

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.helpers import random_latents, random_vae, random_video, small_config
from wan_vae import DecodeStream, EncodeStream, WanVAE, empty_cache
from wan_vae.inference import budget, pass_runner
from wan_vae.ops import cuda_graph
from wan_vae.ops.autotune import measuring

LATENTS = 8


class Graph:
    """Computes with the weights of the time of its capture, as a graph that knows only addresses may."""

    made = 0
    nbytes = 0

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
def vae(monkeypatch: pytest.MonkeyPatch) -> Iterator[WanVAE]:
    monkeypatch.setattr(pass_runner, "can_capture", lambda device: device not in cuda_graph._given_up)
    monkeypatch.setattr(cuda_graph, "_given_up", set())
    monkeypatch.setattr(pass_runner, "CudaGraph", Graph)
    Graph.made, Graph.model = 0, random_vae(small_config())
    cuda_graph.drop_idle()
    yield Graph.model
    cuda_graph.drop_idle()


def idle() -> int:
    return sum(map(len, cuda_graph._idle.values()))


def frames_of(stream: DecodeStream | EncodeStream, latents: Tensor) -> Tensor:
    parts = [stream.push(latent) for latent in latents.split(1, dim=2)]
    return torch.cat([part for part in parts if part is not None], dim=2)


@torch.no_grad()
def test_stream_with_a_graph_gives_the_same_frames(vae: WanVAE) -> None:
    latents = random_latents(vae.config, LATENTS, 2, 3)
    found = frames_of(DecodeStream(vae, latents_per_pass=1), latents)
    assert Graph.made == 1
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(pass_runner, "can_capture", lambda device: False)
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
    monkeypatch.setattr(pass_runner, "CudaGraph", failing)
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


def decoded(vae: WanVAE, latents: Tensor) -> Tensor:
    with DecodeStream(vae, latents_per_pass=1) as stream:
        return frames_of(stream, latents)


def without_graphs(vae: WanVAE, latents: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(pass_runner, "can_capture", lambda device: False)
        return decoded(vae, latents)


def test_later_streams_and_calls_replay_the_graph_of_the_first(vae: WanVAE) -> None:
    clips = [random_latents(vae.config, LATENTS, 2, 3) * scale for scale in (1, 2, 3)]
    for clip in clips:
        assert torch.equal(decoded(vae, clip), without_graphs(vae, clip))
    with torch.no_grad():
        assert torch.equal(vae.decode(clips[0], latents_per_pass=1), decoded(vae, clips[0]))
    assert Graph.made == idle() == 1


def test_loaded_stream_replays_the_graph_of_another(vae: WanVAE) -> None:
    latents = random_latents(vae.config, LATENTS, 2, 3)
    expected = decoded(vae, latents)
    first = DecodeStream(vae, latents_per_pass=1)
    start = frames_of(first, latents[:, :, :2])
    resumed = DecodeStream(vae, latents_per_pass=1)
    resumed.load_state_dict(first.state_dict())
    with mock.patch.object(vae.decoder, "forward", side_effect=vae.decoder.forward) as forward:
        assert torch.equal(torch.cat([start, frames_of(resumed, latents[:, :, 2:])], dim=2), expected)
    assert forward.called  # by the mocked graph
    assert Graph.made == 1


def test_streams_at_the_same_time_never_share_a_graph(vae: WanVAE) -> None:
    clips = [random_latents(vae.config, LATENTS, 2, 3) * scale for scale in (1, 2)]
    expected = [without_graphs(vae, clip) for clip in clips]
    for _ in range(2):
        streams = [DecodeStream(vae, latents_per_pass=1) for _ in clips]
        parts: list[list[Tensor]] = [[], []]
        for index in range(LATENTS):
            for stream, clip, found in zip(streams, clips, parts, strict=True):
                found.append(stream.push(clip[:, :, index : index + 1]))
        for stream in streams:
            stream.flush()
        assert all(torch.equal(torch.cat(found, dim=2), each) for found, each in zip(parts, expected, strict=True))
        assert Graph.made == idle() == 2


def test_streams_in_threads_never_share_a_graph(vae: WanVAE) -> None:
    clips = [random_latents(vae.config, LATENTS, 2, 3) * scale for scale in range(1, 9)]
    expected = [without_graphs(vae, clip) for clip in clips]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda clip: decoded(vae, clip), clips))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert 1 <= Graph.made <= 4


def test_graph_is_not_used_for_another_shape_kind_or_weights(vae: WanVAE) -> None:
    latents = random_latents(vae.config, LATENTS, 2, 3)
    decoded(vae, latents)
    decoded(vae, random_latents(vae.config, LATENTS, 3, 2))
    assert Graph.made == 2
    with torch.no_grad():
        raw = vae.decode(vae.denormalize(latents), raw=True, latents_per_pass=1)
        assert torch.equal(raw, without_graphs(vae, latents))
    assert Graph.made == 3
    video = random_video(2 * LATENTS - 1, 2, 4)
    for moments in (False, True, False):
        with EncodeStream(vae, latents_per_pass=1, moments=moments) as stream:
            frames_of(stream, video)
    assert Graph.made == 5
    for weight in vae.parameters():
        weight.data = 2 * weight.data
    assert torch.equal(decoded(vae, latents), without_graphs(vae, latents))
    assert Graph.made == 6


def test_module_that_was_replaced_or_hooked_is_called(vae: WanVAE) -> None:
    latents = random_latents(vae.config, LATENTS, 2, 3)
    decoded(vae, latents)
    calls = []
    with vae.decoder.head.register_forward_hook(lambda *_: calls.append(1)):
        decoded(vae, latents)
    assert len(calls) == LATENTS
    assert Graph.made == 1
    vae.decoder.head.norm = torch.nn.Identity()
    vae.decoder.head.norm.into = lambda out, x: out.copy_(x)
    assert torch.equal(decoded(vae, latents), without_graphs(vae, latents))
    assert Graph.made == 2


def test_graph_is_not_used_after_a_switch_that_chooses_kernels(vae: WanVAE) -> None:
    latents = random_latents(vae.config, LATENTS, 2, 3)
    decoded(vae, latents)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if before != "medium" else "high")
        decoded(vae, latents)
    finally:
        torch.set_float32_matmul_precision(before)
    assert Graph.made == 2
    decoded(vae, latents)
    assert Graph.made == 2


def test_model_with_modules_of_other_packages_has_no_graph(vae: WanVAE) -> None:
    class Scaled(torch.nn.Identity):
        """An adapter, whose scale is a number of Python."""

        scale = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    latents = random_latents(vae.config, LATENTS, 2, 3)
    vae.decoder.head.norm = Scaled()
    first = decoded(vae, latents)
    Scaled.scale = 2.0
    assert not torch.equal(decoded(vae, latents), first)
    assert Graph.made == 0


def test_interrupted_stream_leaves_no_graph(vae: WanVAE) -> None:
    stream, latents = DecodeStream(vae, latents_per_pass=1), random_latents(vae.config, LATENTS, 2, 3)
    frames_of(stream, latents)
    with mock.patch.object(vae.decoder, "forward", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        stream.push(latents)
    stream.close()
    assert idle() == 0


@pytest.mark.parametrize(("most", "most_bytes"), [(2, 2**30), (8, 2_500_000)])
def test_idle_graphs_are_few_and_those_used_last(
    most: int, most_bytes: int, vae: WanVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "_MOST_IDLE", most)
    monkeypatch.setattr(cuda_graph, "_MOST_IDLE_BYTES", most_bytes)
    monkeypatch.setattr(Graph, "nbytes", 1_000_000)
    clips = [random_latents(vae.config, LATENTS, 1, width) for width in (1, 2, 3)]
    for index, made in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        decoded(vae, clips[index])
        assert (Graph.made, idle()) == (made, min(made, 2))


class Empty(Graph):
    """Keeps nothing, as a graph, which knows addresses alone."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        super().__init__(function, x)
        del self._function

    def supports(self, x: Tensor) -> bool:
        return False


@pytest.mark.parametrize("loaded", [False, True])
def test_graphs_end_with_their_model(loaded: bool, vae: WanVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_runner, "CudaGraph", Empty)
    model = random_vae(small_config())
    stream = DecodeStream(model, latents_per_pass=1)
    latents = random_latents(model.config, LATENTS, 2, 3)
    frames_of(stream, latents)
    if loaded:
        state = stream.state_dict()
        stream = DecodeStream(model, latents_per_pass=1)
        stream.load_state_dict(state)
        frames_of(stream, latents)
    stream.close()
    graph = weakref.ref(cuda_graph._idle[model][0])
    gone, stream = weakref.ref(model), None
    gc.disable()
    try:
        del model
        assert gone() is None
        assert graph() is None
        assert idle() == 0
    finally:
        gc.enable()


def test_idle_graphs_are_dropped_with_the_cache_and_after_tuning(vae: WanVAE) -> None:
    latents = random_latents(vae.config, LATENTS, 2, 3)
    decoded(vae, latents)
    assert idle() == 1
    empty_cache()
    assert idle() == 0
    decoded(vae, latents)
    with measuring():
        assert idle() == 1
    assert idle() == 0


def test_memory_of_graphs_does_not_count_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for name, value in {"mem_get_info": (1000, 5000), "memory_reserved": 900, "memory_allocated": 200}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert budget.free_memory(gpu) == 1700
    graph = mock.Mock(nbytes=300, _device=gpu)
    monkeypatch.setattr(cuda_graph, "_graphs", {graph, mock.Mock(nbytes=50, _device=torch.device("cuda", 1))})
    assert budget.free_memory(gpu) == 1400
    assert cuda_graph.captured_bytes(torch.device("cuda")) == 350


def test_capture_that_fails_leaves_the_stream_of_the_caller_and_tells_the_cause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    current = ["default"]

    @contextmanager
    def stream(name: str) -> Iterator[None]:
        before, current[0] = current[0], name
        try:
            yield
        finally:
            current[0] = before

    class Capture:
        """Ends as `torch.cuda.graph` does: where the capture was invalid, before the stream is restored."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> None:
            current[0] = "capture"

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(cuda_graph, "_given_up", set())
    for name in ("CUDAGraph", "Stream", "device", "empty_cache", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())

    def synchronizes(x: Tensor) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError) as error:
        cuda_graph.CudaGraph(synchronizes, torch.ones(3))
    assert current == ["default"]
    cuda_graph.give_up(torch.device("cuda", 0), error.value)
    assert caplog.messages[-1].endswith("run slower: operation not permitted when stream is capturing")


def test_graph_counts_the_memory_that_its_capture_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = [6000]  # of passes before

    def empty_cache() -> None:
        cached[0] = 0

    @contextmanager
    def graph_of(*_: object, **__: object) -> Iterator[None]:
        empty_cache()
        yield
        cached[0] = 3000

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1000 + cached[0])
    monkeypatch.setattr(torch.cuda, "graph", graph_of)
    for name in ("CUDAGraph", "Stream", "device", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    graph = cuda_graph.CudaGraph(lambda x: 2 * x, torch.ones(3))
    assert graph.nbytes == 3000
    assert cuda_graph.captured_bytes(torch.device("cpu")) == 3000
    del graph
    assert cuda_graph.captured_bytes(torch.device("cpu")) == 0
