"""Measurements that need an NVIDIA GPU, in one run of nine minutes at most, the most wanted first.

Every result is a line of `gpu_lines.jsonl` as soon as it is known, so that a run that is cut short is not lost. A stage
that fails, or that does not fit in the time that is left, writes a line that says so, and the next one begins. Nothing
need be installed but torch, numpy, einops, PyYAML, safetensors and tqdm; diffusers is measured in turn where it is.

    python scripts/measure_gpu.py && python scripts/benchmark_table.py
    python scripts/measure_gpu.py --dry-run    # every stage in tiny sizes on the CPU, to see that it runs
"""

import argparse
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.benchmark import record as records
from wan_vae.benchmark.implementations import (
    DIFFUSERS,
    EXACT,
    TORCH_DTYPES,
    WAN_VAE,
    Implementation,
    import_error,
    load,
    load_on_meta,
    unsupported_reason,
)
from wan_vae.benchmark.inputs import SEED, random_weights, smooth_noise
from wan_vae.benchmark.measure import (
    PeakMemory,
    copy_ceiling,
    count_work,
    describe_machine,
    matmul_ceiling,
    measure_memory,
    synchronize,
    time_by_layer,
    time_by_operation,
    timed,
)
from wan_vae.config import VAEConfig, load_config
from wan_vae.ops import autotune
from wan_vae.ops.attention import attention
from wan_vae.ops.norm_silu import norm_silu_into
from wan_vae.ops.triton import supports_triton
from wan_vae.vae import WanVAE

ROOT = Path(__file__).resolve().parents[1]
BF16 = torch.bfloat16
ROUNDS = 3
SECONDS_FOR_ROUNDS = 30  # a slow call is timed once
SECONDS_FOR_DRY_RUN = 3600  # on a busy machine, too
SECONDS_FOR_TUNING = 90  # of one call
SECONDS_FOR_OTHERS = 30  # a call or a layer


class Clip(NamedTuple):
    """What is encoded, or the size of what is decoded."""

    name: str
    width: int
    height: int
    frames: int


class Layer(NamedTuple):
    """A convolution of Wan2.1's decoder in 720p, and its input."""

    name: str
    channels: int
    out_channels: int
    kernel: tuple[int, int, int]
    frames: int
    height: int
    width: int


HD, SD = Clip("720p", 1280, 720, 81), Clip("480p", 832, 480, 81)
SMALL, IMAGE = Clip("256x256", 256, 256, 17), Clip("1024x1024", 1024, 1024, 1)
OTHER_PRESETS = ("wan2.2", "lightvae", "nano")
LAYERS = (
    Layer("96 to 96", 96, 96, (3, 3, 3), 14, 720, 1280),
    Layer("192 to 192", 192, 192, (3, 3, 3), 14, 360, 640),
    Layer("384 to 384", 384, 384, (3, 3, 3), 8, 180, 320),
    Layer("upsampling 192 to 4x96", 192, 384, (1, 2, 2), 12, 360, 640),
    Layer("384 to 384, small", 384, 384, (3, 3, 3), 5, 90, 160),
    Layer("96 to 3", 96, 3, (3, 3, 3), 14, 720, 1280),
)


class Measurer:
    """What a run has found, and the time that it has left."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.dry = arguments.dry_run
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.folder: Path = arguments.folder
        self._lines = self.folder / "gpu_lines.jsonl"
        self._scratch = scratch
        self._end = time.monotonic() + arguments.budget
        self._start = time.monotonic()
        self._machine = describe_machine(self.device.type)
        self._on = self._versions(arguments.commit)
        self._models: dict[str, Implementation] = {}
        self._loaded = ""  # the preset of `_models`
        self._ceilings: dict[str, float] = {}
        self._seconds: defaultdict[tuple[str, Clip, bool], dict[records.Case, list[float]]] = defaultdict(dict)
        self._peaks: defaultdict[tuple[str, Clip, bool], dict[records.Case, list[PeakMemory]]] = defaultdict(dict)
        self._slowest = (0.0, HD, "decode")

    def _versions(self, commit: str | None) -> dict[str, Any]:
        def found(name: str) -> str | None:
            try:
                return version(name)
            except PackageNotFoundError:
                return None

        driver = None
        if shutil.which("nvidia-smi") is not None:
            command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return {
            "device": self._machine["name"],
            "wan_vae": records.code_version(),
            "commit": commit,
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "triton": found("triton"),
            "driver": driver,
            "python": sys.version.split()[0],
        }

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def say(self, stage: str, **values: Any) -> None:
        """Write a line, which survives whatever happens next."""
        line = {"stage": stage, "at": round(time.monotonic() - self._start, 1), **values}
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"on": self._on}, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(json.dumps(line, default=str)[:400], flush=True)

    def run(self, name: str, needed: float, stage: Callable[[str], None]) -> None:
        """Run a stage, which writes lines with its name, if as many seconds are left."""
        if self.left() < needed:
            self.say(name, skipped=f"it takes about {needed:.0f} s, and {max(0.0, self.left()):.0f} s are left")
            return
        try:
            with torch.inference_mode():
                stage(name)
        # Whatever goes wrong in one stage, the others are wanted.
        except Exception as error:
            self.say(name, error=_last_line(error))
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # Stages

    def environment(self, stage: str) -> None:
        values: dict[str, Any] = {"machine": self._machine}
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            values |= {"multiprocessors": properties.multi_processor_count, "memory": properties.total_memory}
            fields = "clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
            command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
            values[fields] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        self.say(stage, **values)

    def ceilings(self, stage: str) -> None:
        self._ceilings["copy"] = copy_ceiling(self.device)
        self.say(stage, bytes_per_second=self._ceilings["copy"])
        self._ceilings["matmul"] = matmul_ceiling(BF16, self.device)
        self.say(stage, flops_per_second=self._ceilings["matmul"], dtype="bf16")

    def call(self, stage: str, *, clip: Clip, direction: str, tunes: bool = False, preset: str = "wan2.1") -> None:
        """Measure one direction of all implementations in turn, untuned or after tuning."""
        clip, preset = self._sized(clip, preset)
        calls = {
            name: partial(getattr(model, direction), self._input(model, clip, direction, preset))
            for name, model in self._implementations(preset).items()
        }
        about = {"model": preset, "clip": clip._asdict(), "direction": direction, "dtype": "bf16", "tuned": tunes}
        if tunes:
            with autotune.measuring(), self._tuning_in_time():
                seconds = timed(calls[WAN_VAE], self.device)[1]
            self.say(stage, **about, tuning_seconds=seconds, kernels=self._keep_kernels())
        peaks: dict[str, PeakMemory] = {}
        first: dict[str, float] = {}
        for name, call in dict(calls).items():
            try:
                first[name] = timed(call, self.device)[1]  # compiles
                peaks[name] = measure_memory(call, self.device)[1]
            # An implementation that needs more memory than there is leaves the other one.
            except Exception as error:
                self.say(stage, **about, implementation=name, error=_last_line(error))
                del calls[name]
        times: dict[str, list[float]] = {name: [] for name in calls}
        begin = time.monotonic()
        for _ in range(1 if self.dry else ROUNDS):
            for name, call in dict(calls).items():
                try:
                    times[name].append(timed(call, self.device)[1])
                except Exception as error:  # what was measured before stays
                    self.say(stage, **about, implementation=name, error=_last_line(error))
                    del calls[name]
            if time.monotonic() - begin > SECONDS_FOR_ROUNDS:
                break
        for name, seconds_of in times.items():
            if not seconds_of:
                continue
            case, key = records.Case(direction, "bf16", name), (preset, clip, tunes)
            self._seconds[key][case], self._peaks[key][case] = seconds_of, [peaks[name]]
            self.say(stage, **about, implementation=name, seconds=seconds_of, first=first[name], **asdict(peaks[name]))
        if times.get(WAN_VAE) and preset == self._sized(HD, "wan2.1")[1]:
            self._slowest = max(self._slowest, (median(times[WAN_VAE]), clip, direction))

    def errors(self, stage: str) -> None:
        """Compare bf16 with float64 on a small clip; diffusers, where it is there, gives the reference."""
        clip, preset = self._sized(Clip("errors", 128, 128, 9), "wan2.1")
        config, rough = load_config(preset), self._implementations(preset)
        exact = load(list(rough)[-1], config, self._weights(preset), device=self.device, dtype=TORCH_DTYPES[EXACT])
        for direction in ("decode", "encode"):
            given = self._smooth_input(config, clip, direction)

            def output(model: Implementation, dtype: torch.dtype, direction: str = direction, x: Tensor = given) -> Any:
                x = x.to(self.device, BF16).to(dtype)  # rounded before it is denormalized: the same for all
                x = model.to_decoder_input(x) if direction == "decode" else x
                return getattr(model, direction)(x).double()

            reference = output(exact, TORCH_DTYPES[EXACT])
            scale = reference.square().mean().sqrt().item()
            for name, model in rough.items():
                error = (output(model, BF16) - reference).square().mean().sqrt().item()
                values = {"direction": direction, "implementation": name, "clip": clip._asdict(), "dtype": "bf16"}
                self.say(stage, **values, rms_error=error, scale=scale, reference=f"{exact.name} in float64")

    def convolutions(self, stage: str) -> None:
        """Measure every way to compute the largest layers: cuDNN's, and the kernels of this package."""
        for layer in LAYERS:
            if self.left() < SECONDS_FOR_OTHERS:
                self.say(stage, layer=layer.name, skipped="out of time")
                continue
            if self.dry:
                layer = layer._replace(channels=8, out_channels=8, frames=4, height=9, width=10)
            x = self._random(1, layer.channels, layer.frames, layer.height, layer.width)
            weight = self._random(layer.out_channels, layer.channels, *layer.kernel) / (27 * layer.channels) ** 0.5
            padding = (layer.kernel[1] // 2, layer.kernel[2] // 2) if layer.kernel[0] > 1 else (0, 0)
            ways = _ways(x, weight, padding)
            try:
                reference = ways["cudnn"]().float()
            except Exception as error:  # the other layers may be smaller
                self.say(stage, layer=layer._asdict(), way="cudnn", error=_last_line(error))
                continue
            flops = 2 * reference.numel() * weight[0].numel()
            for name, compute in ways.items():
                try:
                    difference = (compute().float() - reference).norm() / reference.norm()
                    seconds = self._fastest(compute)
                    values = {"flops_per_second": flops / seconds, "difference": difference.item()}
                    self.say(stage, layer=layer._asdict(), way=name, seconds=seconds, **values)
                # A way that a library does not support leaves the others.
                except Exception as error:
                    self.say(stage, layer=layer._asdict(), way=name, error=_last_line(error))

    def profile(self, stage: str) -> None:
        """Profile the slowest call by kernel and by layer, and count the launches."""
        seconds, clip, direction = self._slowest
        clip, preset = self._sized(clip, "wan2.1")
        model = self._implementations(preset)[WAN_VAE]
        call = partial(getattr(model, direction), self._input(model, clip, direction, preset))
        operations = time_by_operation(call, self.device)
        layers = time_by_layer(model.network, call, self.device)
        path = self.folder / "gpu_profile.json"
        content = {"on": self._on, "clip": clip._asdict(), "direction": direction}
        content |= {"operations": list(map(asdict, operations)), "layers": list(map(asdict, layers))}
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        launches, busy = (sum(getattr(each, name) for each in operations) for name in ("calls", "seconds"))
        values = {"clip": clip._asdict(), "direction": direction, "seconds": seconds, "file": path.name}
        top = [(each.name[:80], each.seconds, each.calls) for each in operations[:10]]
        self.say(stage, **values, launches=launches, busy_seconds=busy, seconds_by_operation=top)

    def passes(self, stage: str) -> None:
        """Measure the bytes per second of what is no convolution, and the time of a launch."""
        for channels, frames, height, width in ((96, 4, 720, 1280), (192, 4, 360, 640), (384, 4, 180, 320)):
            if self.dry:
                channels, height, width = 8, 8, 8
            x, whole = self._random(1, channels, frames, height, width), self._random(1, channels, 6, height, width)
            gamma, bias = self._random(channels, 1, 1, 1), self._random(channels)
            past, new = whole[:, :, :2], whole[:, :, 2:]
            ways: dict[str, tuple[int, Callable[[], object]]] = {
                "norm and SiLU": (2, partial(norm_silu_into, new, x, gamma)),
                "copy of the halo": (1, partial(past.copy_, x[:, :, :2])),
            }
            if supports_triton(x):
                from wan_vae.ops.triton.bias_residual import add_bias_and_residual

                ways["bias"] = (2, partial(add_bias_and_residual, x, bias, None))
                ways["bias and residual"] = (3, partial(add_bias_and_residual, x, bias, torch.randn_like(x)))
            for name, (moved, compute) in ways.items():
                seconds = self._fastest(compute)
                self.say(stage, what=name, shape=tuple(x.shape), bytes_per_second=moved * x.nbytes / seconds)
        for pixels, channels in ((64, 8),) if self.dry else ((14400, 384), (6240, 384), (3520, 1024)):
            query = self._random(1, 1, pixels, channels)
            seconds = self._fastest(partial(attention, query, query, query))
            flops = 4 * pixels**2 * channels
            self.say(stage, what="attention", shape=tuple(query.shape), flops_per_second=flops / seconds)
        one = self._random(1)
        self.say(stage, what="launch", seconds=self._fastest(partial(one.add_, 1)))

    def others(self, stage: str) -> None:
        """Measure other sizes and models, while there is time."""
        cases = [("wan2.1", clip, direction) for clip, direction in product((SMALL, IMAGE), ("decode", "encode"))]
        cases += [(preset, SD, "decode") for preset in OTHER_PRESETS]
        for preset, clip, direction in cases[:2] if self.dry else cases:
            measure = partial(self.call, clip=clip, direction=direction, preset=preset)
            self.run(stage, SECONDS_FOR_OTHERS, measure)

    def write_records(self, stage: str) -> None:
        """Write speed_*.json for `scripts/benchmark_table.py`, of what was measured so far."""
        if len(self._ceilings) < 2:
            self.ceilings(stage)  # which failed the first time
        matmul, written = {"bf16": self._ceilings["matmul"]}, []
        for (preset, clip, tunes), seconds in self._seconds.items():
            peaks, config = self._peaks[preset, clip, tunes], load_config(preset)
            work = {case: self._work(case, preset, clip) for case in seconds}
            name = f"{preset}, tuned" if tunes else preset
            record = {
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "wan_vae": self._on["wan_vae"],
                "torch": torch.__version__,
                "diffusers": version(DIFFUSERS) if any(case.implementation == DIFFUSERS for case in seconds) else None,
                "machine": {**self._machine, "threads": torch.get_num_threads()},
                "model": {"name": name, "weights": f"random, seed {SEED}", "config": config.to_dict()},
                "clip": {"frames": clip.frames, "width": clip.width, "height": clip.height},
                "warmup": 1,
                "runs": min(map(len, seconds.values())),
                "ceilings": {"matmul_flops_per_second": matmul, "copy_bytes_per_second": self._ceilings["copy"]},
                "results": records.results(seconds, peaks, work, matmul, self._ceilings["copy"]),
                "ratios": records.ratios(seconds),
                "errors": None,
                "profiles": None,
            }
            file = f"speed_{preset}_{clip.name}{'_tuned' if tunes else ''}_{self.device.type}.json"
            (self.folder / file).write_text(json.dumps(record, indent=1), encoding="utf-8")
            written.append(file)
        self.say(stage, files=written)

    def kernels(self, stage: str) -> None:
        self.say(stage, kernels=self._keep_kernels(), file="gpu_kernels.json")

    def kernel_tests(self, stage: str) -> None:
        """Run the tests of the kernels on this GPU; in a dry run, only collect them."""
        if find_spec("pytest") is None or find_spec("hypothesis") is None:
            self.say(stage, skipped="pytest and hypothesis are not installed")
            return
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "-o", "addopts="]
        command += ["tests/ops/triton_cases.py", *(["--collect-only"] if self.dry else [])]
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "env": environment}
        finished = subprocess.run(command, cwd=ROOT, timeout=max(10.0, self.left() - 5), **options)
        self.say(stage, returncode=finished.returncode, output=finished.stdout[-8000:])

    # What stages share

    def _sized(self, clip: Clip, preset: str) -> tuple[Clip, str]:
        """Return a clip and a preset, tiny in a dry run."""
        if not self.dry:
            return clip, preset
        return clip._replace(width=32, height=16, frames=min(clip.frames, 9)), "tiny"

    def _weights(self, preset: str) -> Path:
        config = load_config(preset)
        alone = unsupported_reason(config) is not None
        path = self._scratch / (f"{preset}.safetensors" if alone else f"{preset} weights")
        if not path.exists():
            vae = WanVAE.from_weights(config, random_weights(config))
            vae.save(path, layout="wan" if alone else "diffusers")
        return path

    def _implementations(self, preset: str) -> Mapping[str, Implementation]:
        if self._loaded != preset:
            self._models = {}  # before others take memory
            config, path = load_config(preset), self._weights(preset)
            names = [WAN_VAE]
            if unsupported_reason(config) is None and import_error(DIFFUSERS) is None:
                names.append(DIFFUSERS)
            self._models = {name: load(name, config, path, device=self.device, dtype=BF16) for name in names}
            self._loaded = preset
        return self._models

    def _input(self, model: Implementation, clip: Clip, direction: str, preset: str) -> Tensor:
        shape = _shape(load_config(preset), clip, direction)
        x = self._random(*shape).clamp_(-1, 1).contiguous()
        return x if direction == "encode" else model.to_decoder_input(x)

    def _smooth_input(self, config: VAEConfig, clip: Clip, direction: str) -> Tensor:
        _, *shape = _shape(config, clip, direction)
        noise = smooth_noise(tuple(shape), torch.Generator().manual_seed(SEED))  # type: ignore[arg-type]
        return noise if direction == "decode" else (0.4 * noise).clamp(-1, 1)

    @cache  # noqa: B019 (there is one measurer)
    def _work(self, case: records.Case, preset: str, clip: Clip) -> Any:
        config = load_config(preset)
        model = load_on_meta(case.implementation, config, device=self.device, dtype=BF16)
        given = torch.empty(_shape(config, clip, case.direction), dtype=BF16, device="meta")
        return count_work(partial(getattr(model, case.direction), given))

    def _random(self, *shape: int) -> Tensor:
        """Return random numbers, stored as the network stores them."""
        torch.manual_seed(SEED)
        x = torch.randn(shape, device=self.device, dtype=BF16)
        return x.contiguous(memory_format=torch.channels_last_3d) if len(shape) == 5 else x

    def _fastest(self, compute: Callable[[], object]) -> float:
        """Return the seconds of a call, of as many as take a few milliseconds."""
        once = max(1e-7, min(timed(compute, self.device)[1] for _ in range(2)))
        count = max(1, min(100, round(0.01 / once)))

        def several() -> None:
            for _ in range(count):
                compute()

        return min(timed(several, self.device)[1] for _ in range(3)) / count

    @contextmanager
    def _tuning_in_time(self) -> Iterator[None]:
        """Let the first implementation compute what there is no time to tune."""
        tune, end = autotune.run_fastest, min(self._end - SECONDS_FOR_OTHERS, time.monotonic() + SECONDS_FOR_TUNING)

        def in_time(key: str, ways: Mapping[str, Callable[[], Tensor]], device: torch.device) -> Tensor:
            if time.monotonic() > end:
                return next(iter(ways.values()))()
            return tune(key, ways, device)

        with mock.patch.object(autotune, "run_fastest", in_time):
            yield

    def _keep_kernels(self) -> dict[str, str]:
        """Copy the choices of kernels to the folder of the results, and return them."""
        path = autotune.cache_folder() / "kernels.json"
        if not path.exists():  # nothing was tuned, as on a CPU
            return {}
        shutil.copy(path, self.folder / "gpu_kernels.json")
        choices: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return choices


class Log(logging.Handler):
    """Keeps what the package logs, the times of the tuner's candidates included."""

    def __init__(self, measurer: Measurer) -> None:
        super().__init__(logging.INFO)
        self._measurer = measurer

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self._measurer.say("log", level=record.levelname, message=record.getMessage())


def _ways(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> dict[str, Callable[[], Tensor]]:
    """Return the ways to compute a convolution, by name; the first one is what untuned models use."""
    last, plain = weight.contiguous(memory_format=torch.channels_last_3d), weight.contiguous()

    def searched() -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            return F.conv3d(x, last, None, 1, (0, *padding))

    ways: dict[str, Callable[[], Tensor]] = {
        "cudnn": lambda: F.conv3d(x, plain, None, 1, (0, *padding)),
        "cudnn, weight channels-last": lambda: F.conv3d(x, last, None, 1, (0, *padding)),
        "cudnn, searched": searched,
    }
    if weight.shape[2] == 1:
        flat = x.permute(0, 2, 1, 3, 4).flatten(0, 1)
        flat_weight = weight[:, :, 0].contiguous(memory_format=torch.channels_last)
        ways["cudnn, two dimensions"] = lambda: (
            F.conv2d(flat, flat_weight, None, 1, padding).unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        )
    if supports_triton(x):
        from wan_vae.ops.triton.conv3d import candidates, pack_weight

        ways |= candidates(x, pack_weight(weight), None, None, None, padding)
    return ways


def _shape(config: VAEConfig, clip: Clip, direction: str) -> tuple[int, ...]:
    """Return the shape of what a call takes."""
    if direction == "encode":
        return 1, config.image_channels, clip.frames, clip.height, clip.width
    frames = 1 + (clip.frames - 1) // config.temporal_compression
    side = config.spatial_compression
    return 1, config.latent_channels, frames, clip.height // side, clip.width // side


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip().splitlines()[-1][:500]


def stages(measurer: Measurer) -> list[tuple[str, float, Callable[[str], None]]]:
    """Return names, seconds that they take at least, and functions, the most wanted first."""
    whole = ((HD, "decode"), (HD, "encode"), (SD, "decode"))
    found: list[tuple[str, float, Callable[[str], None]]] = [
        ("environment", 0, measurer.environment),
        ("ceilings", 5, measurer.ceilings),  # a few seconds, and all else is a share of them
    ]
    # Tuned kernels would be used for all shapes that are measured later.
    for tunes, (clip, direction) in product((False, True), whole):
        name = f"{clip.name} {direction}{', tuned' if tunes else ''}"
        call = partial(measurer.call, clip=clip, direction=direction, tunes=tunes)
        found.append((name, 60 if tunes else 30, call))
    return [
        *found,
        ("kernels", 0, measurer.kernels),
        ("errors", 20, measurer.errors),
        ("records", 20, measurer.write_records),
        ("convolutions", 30, measurer.convolutions),
        ("profile", 20, measurer.profile),
        ("passes", 10, measurer.passes),
        ("others", 30, measurer.others),
        ("all records", 20, measurer.write_records),
        ("kernel tests", 20, measurer.kernel_tests),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budget", type=float, default=530, help="seconds that the run may take (default: 530)")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks", help="where results go")
    parser.add_argument("--commit", help="of this code, where it is no git checkout")
    parser.add_argument("--dry-run", action="store_true", help="run every stage in tiny sizes on the CPU")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error(f"there is no NVIDIA GPU here that torch {torch.__version__} can use; --dry-run needs none")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="wan-vae-gpu-") as scratch:
        # Choices of kernels from earlier runs would make the untuned calls tuned ones.
        os.environ["XDG_CACHE_HOME"] = scratch
        if arguments.dry_run:
            os.environ["WAN_VAE_BUILD_KERNELS"] = "0"
            arguments.budget = SECONDS_FOR_DRY_RUN
        measurer = Measurer(arguments, Path(scratch))
        logger = logging.getLogger("wan_vae")
        logger.setLevel(logging.INFO)
        logger.addHandler(Log(measurer))
        for stage in stages(measurer):
            measurer.run(*stage)
        synchronize(measurer.device)


if __name__ == "__main__":
    main()
