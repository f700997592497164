"""Arguments that no call can take: one sentence each with the value at fault, also under `python -O`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers import random_latents, random_vae, random_video, small_config
from wan_vae import (
    DecodeStream,
    EncodeStream,
    Posterior,
    ShardedVAE,
    Tiling,
    UserError,
    WanVAE,
    compare_file,
    decode_file,
    encode_file,
    reconstruct_file,
    report_file,
)
from wan_vae.arguments import shown
from wan_vae.evaluation.contact_sheet import ContactSheet
from wan_vae.evaluation.metrics import Metrics

CONFIG = small_config(temporal_downsample=(True, True), width_multipliers=(1, 1, 1))
FRAMES, SIDE = 5, 8
SIZE = {"frames": FRAMES, "height": SIDE, "width": SIDE, "memory": "1GiB"}


@cache
def vae() -> WanVAE:
    return random_vae(CONFIG, torch.float32)


def video() -> Tensor:
    return random_video(FRAMES, SIDE, SIDE, dtype=torch.float32)


def latents() -> Tensor:
    return random_latents(CONFIG, 2, 2, 2, dtype=torch.float32)


def odd_tensors(like: Callable[[], Tensor]) -> dict[str, tuple[Any, str]]:
    """Return values that look like a video or latents and are not, with what the message must hold."""
    good = like()
    spatial = f"(1, 3, {good.shape[2]}, 0, {good.shape[4]})"
    return {
        "None": (None, "NoneType"),
        "list": (good.tolist(), "list"),
        "numpy": (good.numpy(), "numpy"),
        "text": ("clip.mp4", "str"),
        "sparse": (good.to_sparse(), "sparse"),
        "nested": (torch.nested.nested_tensor([good[0], good[0]]), "nested"),
        "jagged": (torch.nested.nested_tensor([good[0], good[0]], layout=torch.jagged), "jagged"),
        "quantized": (torch.quantize_per_tensor(good, 0.1, 0, torch.quint8), "quantized"),
        "mkldnn": (good.to_mkldnn(), "mkldnn"),
        "meta": (good.to("meta"), "meta"),
        "fp8": (good.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        "complex": (good.to(torch.complex64), "complex64"),
        "int": (good.to(torch.int32), "int32"),
        "bool": (good > 0, "torch.bool"),
        "batch 0": (good[:0], "(0, 3"),
        "no channel": (good[:, :0], "(1, 0"),
        "height 0": (good[:, :, :, :0], "0" if like is video else spatial),
        "width 0": (good[..., :0], "0"),
        "scalar": (torch.tensor(1.0), "()"),
        "vector": (torch.zeros(5), "(5,)"),
        "pictures": (good[:, :, 0], "(1, 3, "),
        "six dimensions": (good[None], "(1, 1, 3"),
        "five channels": (torch.zeros(1, 5, *good.shape[2:]), "(1, 5"),
    }


class Case(NamedTuple):
    """A call that must be refused, and what its message must hold."""

    call: Callable[[], object]
    fragment: str


def cases() -> Iterator[tuple[str, Case]]:
    for name, call in tensor_calls().items():
        for kind, (value, fragment) in odd_tensors(video if "video" in name else latents).items():
            if not (kind in ("meta", "batch 0", "height 0", "width 0") and "any size" in name):
                yield f"{name}: {kind}", Case(lambda call=call, value=value: call(value), fragment)
    for (name, call), values in plain_calls().items():
        for value, fragment in values:
            yield f"{name}: {shown(value)}", Case(lambda call=call, value=value: call(value), fragment)
    yield from states()
    yield from weights()
    yield from files()


def tensor_calls() -> dict[str, Callable[[Any], object]]:
    return {
        "encode video": lambda x: vae().encode(x),
        "encode video in a budget": lambda x: vae().encode(x, memory="1GiB"),
        "posterior video": lambda x: vae().posterior(x),
        "forward video": lambda x: vae()(x),
        "decode": lambda x: vae().decode(x),
        "decode in a budget": lambda x: vae().decode(x, memory="1GiB"),
        "encode_stream video": lambda x: list(vae().encode_stream([x])),
        "decode_stream": lambda x: list(vae().decode_stream([x])),
        "EncodeStream.push video": lambda x: EncodeStream(vae()).push(x),
        "DecodeStream.push": lambda x: DecodeStream(vae()).push(x),
        "EncodeStream.push video later": lambda x: pushed(EncodeStream).push(x),
        "DecodeStream.push later": lambda x: pushed(DecodeStream).push(x),
        "normalize, any size": lambda x: vae().normalize(x),
        "denormalize, any size": lambda x: vae().denormalize(x),
    }


@cache  # a refused push takes nothing, so that one stream serves all
def pushed(kind: type[EncodeStream | DecodeStream]) -> EncodeStream | DecodeStream:
    stream = kind(vae())
    stream.push(video() if kind is EncodeStream else latents())
    return stream


COUNTS = [(value, shown) for value, shown in [
    (0, "0"), (-1, "-1"), (1.5, "1.5"), (True, "True"), ("2", "'2'"), (None, "None"), ([], "[]"), (2j, "2j"),
    (float("nan"), "nan"), (float("inf"), "inf"), (torch.tensor([1, 2]), "Tensor"), (np.zeros(2), "ndarray"),
    (-(10**5000), "int of thousands"),
]]  # fmt: skip
HUGE = [(10**12, "1000000000000"), (10**400, "1000"), (10**5000, "int of thousands")]
BUDGETS = [
    (0, "0"), (-1, "-1"), ("", "''"), ("4 GB of it", "'4 GB of it'"), ("1e400GiB", "'1e400GiB'"), ("-4GiB", "-4GiB"),
    (float("nan"), "nan"), (float("inf"), "inf"), (4e9, "4000000000.0"), (True, "True"), ([], "[]"), (b"4GiB", "4GiB"),
    (10**30, "10000"), (10**5000, "int of thousands"), ("9" * 10**6, "..."), (torch.tensor(1), "Tensor"),
    (np.array(["auto", "auto"]), "ndarray"),
]  # fmt: skip
DTYPES = [
    ("int8", "int8"), (torch.int8, "int8"), (torch.complex64, "complex64"), ("complex", "complex"),
    (torch.bool, "bool"),
    (torch.float8_e4m3fn, "float8"), (5, "5"), (["float32"], "float32"), (float, "float"), ("", "''"),
    ("x" * 10**6, "xxx..."),
]  # fmt: skip
DEVICES = [
    ("cuda:99", "cuda:99"), ("nonsense", "nonsense"), ("", "''"), ("cpu:x", "cpu:x"), (5.5, "5.5"), ([], "[]"),
    ("xla", "xla"), ("privateuseone", "privateuseone"), ("hpu", "hpu"), ("mps:7", "mps:7"),
]  # fmt: skip
FLAGS = [("no", "'no'"), (None, "None"), (1, "1"), (torch.tensor([True]), "Tensor")]
PATHS = [
    (None, "None"),
    (5, "5"),
    (b"a.safetensors", "a.safetensors"),
    ("", "''"),
    ("a\0b.safetensors", "b.safetensors"),
]


def plain_calls() -> dict[tuple[str, Callable[[Any], object]], list[tuple[Any, str]]]:
    some = [case for case in COUNTS if case[0] is not None]
    calls: dict[tuple[str, Callable[[Any], object]], list[tuple[Any, str]]] = {
        ("encode latents_per_pass", lambda n: vae().encode(video(), latents_per_pass=n)): some,
        ("decode latents_per_pass", lambda n: vae().decode(latents(), latents_per_pass=n)): some,
        ("decode raw", lambda n: vae().decode(latents(), raw=n)): FLAGS,
        ("stream latents_per_pass", lambda n: vae().encode_stream([video()], latents_per_pass=n)): some,
        ("EncodeStream latents_per_pass", lambda n: EncodeStream(vae(), latents_per_pass=n)): some,
        ("plan latents_per_pass", lambda n: vae().plan("decode", **SIZE, latents_per_pass=n)): some,
        ("encode memory", lambda n: vae().encode(video(), memory=n)): BUDGETS,
        ("decode memory", lambda n: vae().decode(latents(), memory=n)): BUDGETS,
        ("stream memory", lambda n: list(vae().decode_stream([latents()], memory=n))): BUDGETS,
        ("plan memory", lambda n: vae().plan("encode", **(SIZE | {"memory": n}))): BUDGETS,
        ("plan direction", lambda n: vae().plan(n, **SIZE)): [("sideways", "sideways"), (None, "None"), ([], "[]")],
        ("plan streaming", lambda n: vae().plan("encode", **SIZE, streaming=n)): FLAGS,
        ("plan device", lambda n: vae().plan("encode", **SIZE, device=n)): [("nonsense", "nonsense"), (5.5, "5.5")],
        ("default_chunk_size", lambda n: vae().default_chunk_size(n, 8)): COUNTS,
        ("forward sample", lambda n: vae()(video(), sample=n)): FLAGS,
        ("forward generator", lambda n: vae()(video(), sample=True, generator=n)): [(5, "5"), ("seed", "'seed'")],
        ("set_dtypes encoder", lambda n: vae().set_dtypes(encoder=n, decoder=torch.float32)): [*DTYPES, (None, "None")],
        ("set_dtypes decoder", lambda n: vae().set_dtypes(encoder=torch.float32, decoder=n)): [*DTYPES, (None, "None")],
        ("set_gradient_checkpointing", lambda n: vae().set_gradient_checkpointing(n)): FLAGS,
        ("from_pretrained dtype", lambda n: WanVAE.from_pretrained("nano", dtype=n)): DTYPES,
        ("from_pretrained device", lambda n: WanVAE.from_pretrained("nano", device=n)): DEVICES,
        ("from_weights device", lambda n: WanVAE.from_weights(CONFIG, vae().state_dict(), device=n)): DEVICES,
        ("from_weights config", lambda n: WanVAE.from_weights(n, vae().state_dict())): [("wan2.1", "'wan2.1'")],
        ("WanVAE", lambda n: WanVAE(n)): [("wan2.1", "'wan2.1'"), (None, "None"), ({}, "{}")],
        ("from_config", lambda n: WanVAE.from_config(n)): [
            (None, "None"), (5, "5"), ("", "YAML"), ({}, "{}"), ("wan9", "wan9"), (b"tiny", "tiny"),
        ],
        ("from_config changes", lambda n: WanVAE.from_config("tiny", **n)): [
            ({"block": 5}, "5"), ({"encoder_width": 0}, "0"), ({"encoder_width": "8"}, "'8'"),
            ({"unknown": 1}, "unknown"),
            ({"width_multipliers": None}, "None"), ({"latent_mean": [float("nan")]}, "nan"),
            ({"dropout": True}, "True"),
            ({"latent_std": torch.ones(3)}, "latent_std"),
        ],
        ("save", lambda n: vae().save(n)): PATHS,
        ("save layout", lambda n: vae().save("never.safetensors", layout=n)): [("x", "'x'"), (None, "None")],
        ("encode_stream chunks", lambda n: vae().encode_stream(n)): [(None, "None"), (5, "5")],
        ("encode_stream neighbors", lambda n: vae().encode_stream([], neighbors=n)): [("left", "'left'"), (5, "5")],
        ("EncodeStream", lambda n: EncodeStream(n)): [(None, "None"), ("nano", "'nano'"), (nn.Linear(1, 1), "Linear")],
        ("EncodeStream tiling", lambda n: EncodeStream(vae(), tiling=n)): [((2, 2), "(2, 2)"), ("2x2", "'2x2'")],
        ("Tiling rows", lambda n: Tiling(n, 1, 0, 1)): [*COUNTS, *HUGE],
        ("Tiling first", lambda n: Tiling(1, 1, n, 1)): [(2, "2"), (-1, "-1"), ("0", "'0'"), (10**30, "10")],
        ("load_state_dict", lambda n: EncodeStream(vae()).load_state_dict(n)): [
            (None, "None"), (5, "5"), ([], "[]"), ("state", "'state'"), ({}, "'stream'"), ({5: 5}, "'stream'"),
        ],
        ("Posterior.from_moments", Posterior.from_moments): [
            (None, "NoneType"), ([], "list"), (torch.zeros(6), "(6,)"), (torch.zeros(1, 5, 1, 1, 1), "(1, 5,"),
            (torch.zeros(1, 6, 1, 1, 1, dtype=torch.int64), "int64"), (latents().to_sparse(), "sparse"),
        ],
        ("Posterior logvar", lambda n: Posterior(latents(), n)): [
            (None, "NoneType"), (5.0, "float"), (latents()[..., :1], "(1, 3, 2, 2, 1)"), (latents().double(),
            "float64"),
            (latents().to("meta"), "meta"), (latents() > 0, "torch.bool"), (latents().to(torch.complex64), "complex64"),
        ],
        ("ContactSheet", ContactSheet): [(0, "0"), (-1, "-1"), ("5", "'5'")],
        ("ContactSheet without frames", lambda n: ContactSheet(n).draw()): [(5, "no frame")],
        ("Metrics.score", lambda n: Metrics().score()): [("nothing", "no score")],
        ("Metrics.add", lambda n: Metrics().add(np.zeros((9, 9, 3), np.uint8), n)): [
            (np.zeros((9, 8, 3), np.uint8), "(9, 8, 3)"),
        ],
        ("ShardedVAE", lambda n: n.shard()): [(vae(), "process group")],
        ("ShardedVAE model", lambda n: ShardedVAE(n)): [(vae(), "process group"), (None, "process group")],
    }  # fmt: skip
    for name in ("frames", "height", "width", "batch"):
        for direction in ("encode", "decode"):
            call = lambda n, name=name, direction=direction: vae().plan(direction, **(SIZE | {name: n}))  # noqa: E731
            calls[f"plan {direction} {name}", call] = [*COUNTS, *HUGE[1:], (4 * 10**12 + (name == "frames"), "4000")]
    if not torch.cuda.is_available():
        calls["cuda where there is none", lambda n: WanVAE.from_pretrained("nano", device=n)] = [("cuda", "'cuda'")]
    return calls


def states() -> Iterator[tuple[str, Case]]:
    """Yield states of streams that are no longer what `state_dict` returned."""
    stream = EncodeStream(vae())
    stream.push(random_video(7, SIDE, SIDE, dtype=torch.float32))
    state = stream.state_dict()
    described = json.loads(bytes(state["stream"].tolist()))
    cache_name = "halo.encoder.levels.0.blocks.0.conv1"

    def text(value: object) -> Tensor:
        return torch.tensor(list((value if isinstance(value, str) else json.dumps(value)).encode()), dtype=torch.uint8)

    def loaded(**changes: Tensor | None) -> None:
        changed = {name: value for name, value in (state | changes).items() if value is not None}
        EncodeStream(vae()).load_state_dict(changed)

    def resumed(**changes: Tensor | None) -> None:
        """Load a state whose description was changed along with it, and go on."""
        changed = {name: value for name, value in (state | changes).items() if value is not None}
        content = {name: value for name, value in changed.items() if name not in ("stream", "weights")}
        entries = {name: f"{tuple(value.shape)} of {value.dtype}" for name, value in content.items()}
        other = EncodeStream(vae())
        other.load_state_dict(changed | {"stream": text(described | {"entries": entries})})
        other.push(random_video(4, SIDE, SIDE, dtype=torch.float32))

    for name in ("stream", "weights", "position", "waiting", cache_name):
        short = name.rpartition(".")[2]
        tensor = state[name]
        bad = {
            "missing": None, "text": "x", "list": [1], "flat": tensor.flatten()[:1].repeat(7),
            "meta": tensor.to("meta"),
            "sparse": tensor.to_sparse(), "complex": tensor.to(torch.complex64),
            "scalar of NaN": torch.tensor(torch.nan),
        }  # fmt: skip
        for kind, value in bad.items():
            yield f"state, {name}: {kind}", Case(lambda name=name, value=value: loaded(**{name: value}), short)
            # A state that leaves out a cache, and says so, is that of a stream that has not filled it yet.
            if name in ("position", "waiting") or (name == cache_name and value is not None):
                fragment = {"waiting": "", "position": "position"}.get(name, "conv1")
                yield (
                    f"described state, {name}: {kind}",
                    Case(
                        lambda name=name, value=value: (
                            resumed(**{name: value}) if isinstance(value, Tensor | None) else loaded(**{name: value})
                        ),
                        fragment,
                    ),
                )
    cached = state[cache_name]
    for kind, value in {
        "of another dtype": cached.double(), "too many frames": cached.repeat(1, 1, 9, 1, 1),
        "no frame": cached[:, :, :0],
        "narrow": cached[..., :1], "of a larger batch": cached.repeat(2, 1, 1, 1, 1), "of integers": cached.int(),
    }.items():  # fmt: skip
        yield f"described state, cache {kind}", Case(lambda value=value: resumed(**{cache_name: value}), "conv1")
    for position in (-1, -(2**63), 2**62, 2**63 - 1, 8):
        value = torch.tensor(position)
        yield f"described state, position {position}", Case(lambda value=value: resumed(position=value), str(position))
    for kind, value in {
        "deep": text("[" * 10**5), "a list": text([]), "a number": text(1), "null": text(None), "text": text('"x"'),
        "no bytes": text(""), "floats": torch.zeros(9), "large": torch.zeros(1, dtype=torch.uint8).expand(2**40),
        "only a version": text({"version": 1}), "another version": text({"version": [2] * 10**4}),
        "no config": text(described | {"config": None}), "no entries": text(described | {"entries": [1]}),
        "another direction": text(described | {"direction": "up"}),
        "a list as direction": text(described | {"direction": []}),
        "a dictionary as direction": text(described | {"direction": {}}),
        "another model": text(described | {"config": {"latent_channels": [[]] * 10**4}}),
        "no entry": text(described | {"entries": {}}), "one entry": text(described | {"entries": {"position": [[5]]}}),
    }.items():  # fmt: skip
        yield f"state, description: {kind}", Case(lambda value=value: loaded(stream=value), "state")
    yield "state, an entry more", Case(lambda: loaded(more=torch.zeros(1)), "'more'")
    yield (
        "state, numbers as names",
        Case(lambda: EncodeStream(vae()).load_state_dict(state | {5: state["position"]}), "5"),
    )
    yield (
        "stream, stages that the network does not have",
        Case(lambda: EncodeStream(vae(), tiling=Tiling(2, 2, 0, 9)), "9"),
    )
    tiled = EncodeStream(vae(), tiling=Tiling(2, 2, 0, 2))
    tiled.push(video())
    state_of_tiles = tiled.state_dict()

    def with_tiles(change: dict[str, Tensor | None]) -> None:
        changed = {name: value for name, value in (state_of_tiles | change).items() if value is not None}
        content = {name: value for name, value in changed.items() if name not in ("stream", "weights")}
        entries = {name: f"{tuple(value.shape)} of {value.dtype}" for name, value in content.items()}
        stream = EncodeStream(vae())
        stream.load_state_dict(changed | {"stream": text(described | {"entries": entries})})
        stream.push(random_video(4, SIDE, SIDE, dtype=torch.float32))

    for kind, tiling in {
        "short": torch.tensor([2, 2]), "negative": torch.tensor([-1, 2, 0, 2, 1]),
        "huge": torch.tensor([2**62, 2, 0, 2, 1]),
        "of floats": torch.tensor([2.0, 2.5, 0, 2, 1]), "turned round": torch.tensor([2, 2, 2, 0, 1]),
        "one": torch.tensor(1),
    }.items():  # fmt: skip
        yield (
            f"state of tiles, tiling {kind}",
            Case(lambda tiling=tiling: with_tiles({"halo.tiling": tiling}), "tiling"),
        )
    for part in ("tile3", "stage", "tile"):
        without = dict.fromkeys(name for name in state_of_tiles if name.startswith(f"halo.{part}"))
        yield f"state of tiles without {part}", Case(lambda without=without: with_tiles(without), part)


def weights() -> Iterator[tuple[str, Case]]:
    """Yield weights that are not those of the config."""
    good = vae().state_dict()
    name = "encoder.conv_in.weight"
    for kind, changed, fragment in (
        ("none", {}, "encoder"),
        ("a list", [], "[]"),
        ("text", "weights.pth", "'weights.pth'"),
        ("missing", {key: value for key, value in good.items() if key != name}, name),
        ("more", good | {"more": torch.zeros(1)}, "'more'"),
        ("numbers as names", good | {5: torch.zeros(1)}, "5"),
        ("misshapen", good | {name: torch.zeros(1)}, "(1,)"),
        ("a list as a weight", good | {name: [1.0]}, "list"),
        ("integers", good | {name: good[name].int()}, "int32"),
        ("complex", good | {name: good[name].to(torch.complex64)}, "complex64"),
        ("sparse", good | {name: good[name].to_sparse()}, "sparse"),
        ("fp8", good | {name: good[name].to(torch.float8_e5m2)}, "float8_e5m2"),
    ):
        yield f"from_weights: {kind}", Case(lambda changed=changed: WanVAE.from_weights(CONFIG, changed), fragment)


def files() -> Iterator[tuple[str, Case]]:
    """Yield options of the functions that read and write files."""
    from PIL import Image

    folder = Path(tempfile.mkdtemp())
    clip, out = folder / "clip.png", folder / "out.safetensors"
    Image.new("RGB", (SIDE, SIDE)).save(clip)
    good = {"clip": clip, "latents": out, "vae": "nano"}
    for name, values in {
        "size": [((0, 0), "0x0"), ("640x480", "'640x480'"), ((640,), "(640,)"), (640, "640"), ((8.0, 8), "8.0"),
                 ((True, 8), "True"), ((-8, 8), "-8"), ((10**30, 8), "1000"), (("8", "8"), "'8'"), (np.zeros(2),
                 "ndarray")],
        "frames": [((5, 2), "5:2"), ((-5, None), "-5"), (5, "5"), ("0:5", "'0:5'"), ((0.0, 5), "0.0"), ((1, 2, 3),
        "(1, 2, 3)"),
                   (None, "None"), ((True, 2), "True"), ((10**30, None), "1000"), ((0, 0), "0:0")],
        "length": [(0, "0"), (-1, "-1"), (2.0, "2.0"), ("5", "'5'"), (True, "True"), (2, "not 2")],
        "fps": [(0, "0"), (-1, "-1"), (float("nan"), "nan"), (float("inf"), "inf")],
        "memory": BUDGETS,
        "overwrite": FLAGS,
        "posterior": FLAGS,
        "progress": [("yes", "'yes'"), (5, "5")],
        "load": [(None, "None"), ("nano", "'nano'")],
        "clip": PATHS[:2],
        "latents": PATHS,
        "vae": [(None, "None"), (5, "5"), (nn.Linear(1, 1), "Linear"), ("", "a trained model")],
    }.items():  # fmt: skip
        for value, fragment in values:
            yield (
                f"encode_file {name}: {shown(value)}",
                Case(lambda name=name, value=value: encode_file(**(good | {name: value})), fragment),
            )
    for value, fragment in FLAGS:
        yield (
            f"decode_file lossless: {shown(value)}",
            Case(lambda value=value: decode_file(out, folder / "a.mp4", "nano", lossless=value), fragment),
        )
    for value, fragment in PATHS[1:]:
        for name in ("side_by_side", "report", "lpips"):
            option = {name: value}
            yield (
                f"reconstruct_file {name}: {shown(value)}",
                Case(lambda option=option: reconstruct_file(clip, folder / "a.mp4", "nano", **option), fragment),
            )
        yield f"report_file: {shown(value)}", Case(lambda value=value: report_file(clip, value, "a.html"), fragment)
        yield f"compare_file: {shown(value)}", Case(lambda value=value: compare_file(clip, value, ["nano"]), fragment)


def faults() -> list[str]:
    """Return what is wrong with how the cases are refused."""
    found = []
    for name, case in cases():
        try:
            with torch.no_grad():
                result = case.call()
        except UserError as error:
            if case.fragment not in str(error) or len(str(error)) > 1100 or "\n" in str(error):
                found.append(f"{name}: the message lacks {case.fragment!r}: {error}")
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
        else:
            found.append(f"{name}: accepted, {type(result).__name__}")
    return found


def test_misuse_of_every_kind_gets_one_sentence_with_the_value() -> None:
    assert faults() == []


@pytest.mark.slow
def test_misuse_without_assertions_gets_the_same_sentences() -> None:
    script = "from tests.test_misuse import faults; print(*faults(), sep='\\n')"
    arguments = [sys.executable, "-O", "-W", "ignore", "-c", script]
    run = subprocess.run(arguments, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stdout + run.stderr[-2000:]
