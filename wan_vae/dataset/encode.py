"""From a clip to its outputs: one function, which every way to run a cache calls.

`read_parts` decodes and cuts, and needs no network; `PartEncoder` encodes a part and writes it.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_vae.checkpoints.tensor_files import list_tensors
from wan_vae.chunks import latents_on_host
from wan_vae.config import VAEConfig
from wan_vae.dataset.manifest import Manifest, Record
from wan_vae.dataset.outputs import CACHE_OUTPUTS, Begin
from wan_vae.dataset.parts import MUSUBI_FPS, Part, musubi_frames
from wan_vae.dataset.plan import CacheOptions, Job
from wan_vae.dataset.sources import Source
from wan_vae.dataset.storage import Store
from wan_vae.errors import CheckpointError, ClipError, LatentsError
from wan_vae.inference.budget import Budget
from wan_vae.io import Clip, ClipInfo, open_clip
from wan_vae.io.color import eight_bits
from wan_vae.io.frames import Frames, FramesToTensors
from wan_vae.io.latents_info import LatentsInfo
from wan_vae.vae import WanVAE

_LARGEST_CHUNK = 2**26  # bytes of frames that are handed on at once


Item: TypeAlias = Begin | Frames


def open_source(source: Source, options: CacheOptions, config: VAEConfig) -> Clip:
    """Open a clip as it is encoded, before it is cut and brought to its bucket.

    Raises:
        ClipError: It cannot be read.
    """
    span = options.span(source)
    if options.source_fps is not None and span != (None, None):
        raise ClipError(f"{source.path} has a start or a stop, which are not possible with source_fps; give fps.")
    return open_clip(
        source.path,
        size=options.size,
        fit="stretch" if options.stretches else options.fit,  # of which `cache_latents` tells once
        frames=span,
        fps=options.fps,
        length=options.length,
        alpha=config.image_channels == 4,
    )


def cut(source: Path, info: ClipInfo, options: CacheOptions, config: VAEConfig) -> tuple[ClipInfo, list[Part]]:
    """Return the size that a clip is encoded at, as its properties, and its parts.

    Raises:
        ClipError: It is shorter than all parts.
    """
    if info.container == "image" and info.frames > 1:
        info = replace(info, container=info.codec)  # an animation is cut as a video is
    if options.source_fps is not None and info.container != "image":
        kept = len(musubi_frames(info.frames, options.source_fps))
        info = replace(info, frames=kept, fps=Fraction(MUSUBI_FPS))
    parts = [Part(0, info.frames)]
    if options.extract is not None and info.container != "image":
        parts = options.extract.parts(info.frames, config.temporal_compression)
        if not parts:
            least = min(options.extract.target_frames)
            count = "1 frame" if info.frames == 1 else f"{info.frames} frames"
            raise ClipError(f"{source} has {count}, fewer than a part of {least} has.")
    if options.resolution is not None:
        width, height = options.resolution
        if options.buckets:
            width, height = CACHE_OUTPUTS[options.format](options, config).bucket(info.width, info.height)
        info = replace(info, width=width, height=height, pixel_aspect=Fraction(1), bit_depth=8)
    return info, parts


def read_parts(job: Job, options: CacheOptions, vae: WanVAE) -> Generator[Item, None, None]:
    """Decode a clip: for each part a `Begin`, then its frames (n, height, width, c), as many as fit a pass at a time.

    Raises:
        ClipError: The clip cannot be read, or is shorter than all parts.
    """
    config = vae.config
    with open_source(job.source, options, config) as clip:
        info, parts = cut(job.source.path, clip.info, options, config)
        count = vae.default_chunk_size(info.height, info.width) * config.temporal_compression
        count = max(1, min(count, _LARGEST_CHUNK // (info.width * info.height * config.image_channels)))
        frames: Iterator[NDArray[Any]] = (frame for chunk in clip.chunks(count) for frame in chunk)
        if options.source_fps is not None and info.container != "image":
            kept = set(musubi_frames(clip.info.frames, options.source_fps))
            frames = (frame for number, frame in enumerate(frames) if number in kept)
        if options.resolution is not None:
            output, size = CACHE_OUTPUTS[options.format](options, config), (info.width, info.height)
            frames = (output.to_bucket(eight_bits(frame), size) for frame in frames)
        held: deque[NDArray[Any]] = deque()  # frames from `first` on
        first = 0
        offset = options.span(job.source)[0] or 0
        for number, part in enumerate(parts):
            original = (clip.info.width, clip.info.height)
            yield Begin(number, len(parts), offset + part.start, replace(info, frames=part.frames), original)
            following = parts[number + 1].start if number + 1 < len(parts) else part.start + part.frames
            for begin in range(part.start, part.start + part.frames, count):
                end = min(begin + count, part.start + part.frames)
                while first + len(held) < end:
                    if (frame := next(frames, None)) is None:
                        raise ClipError(
                            f"{job.source.path} ends after {first + len(held)} of the {info.frames} frames that it"
                            " announces; fetch or copy it again."
                        )
                    held.append(frame)
                    if first + len(held) <= min(begin, following):
                        held.popleft()
                        first += 1
                yield np.stack([held[index - first] for index in range(begin, end)])
                while held and first < min(end, following):
                    held.popleft()
                    first += 1


class PartEncoder:
    """Encodes parts with one model, and writes them.

    Args:
        vae: The model.
        out: Folder of the cache.
        options: Of the cache.
        memory: Budget of the network, as of `encode_file`.

    Attributes:
        place: Where files are written.
    """

    def __init__(self, vae: WanVAE, out: Path, options: CacheOptions, memory: Budget) -> None:
        self._vae, self._options, self._memory = vae, options, memory
        self._output = CACHE_OUTPUTS[options.format](options, vae.config)
        self._store = None if options.store is None else Store(options.store)
        # What goes elsewhere is complete on this machine first; a cluster's nodes need not have the cache's folder.
        self._temporary = None if self._store is None else TemporaryDirectory(prefix="wan_vae_cache_")
        self.place = out if self._temporary is None else Path(self._temporary.name)

    def encode(self, job: Job, begin: Begin, frames: Iterator[Frames], tick: Callable[[], object]) -> Record:
        """Encode the frames of a part, write its file in one step, and describe it; `tick` is called after a pass."""
        info, vae, begun = begin.info, self._vae, time.perf_counter()
        below = self._output.path(job, begin)
        path = self.place / below
        self._check_replaceable(below)
        statistics = _Statistics()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            writer = stack.enter_context(self._output.writer(job, path, begin))
            tensors = FramesToTensors(frames, vae.config, vae.device)
            first = _First(tensors)
            for chunk, *logvar in self._encoded(first, info):
                if logvar:
                    writer.write_posterior(chunk, *logvar)
                else:
                    writer.write(chunk)
                statistics.add(chunk)
                tick()
            if self._options.i2v:
                for (chunk,) in self._encoded(self._first_and_zeros(first.frame, info), info):
                    writer.write(chunk)
                    tick()
            shape = writer.finish(LatentsInfo.of_clip(info, tensors.frames, vae.config, job.key.checkpoint))
        size, output = path.stat().st_size, below.as_posix()
        if self._store is not None:
            output = self._store.put(path, below)
            path.unlink()
        return Record(
            source=job.source.label,
            output=output,
            part=begin.number,
            parts=begin.parts,
            start=begin.start,
            frames=tensors.frames,
            width=info.width,
            height=info.height,
            fps=str(info.fps),
            duration=float(tensors.frames / info.fps),
            shape=shape,
            mean=statistics.mean,
            std=statistics.std,
            caption=job.source.caption,
            seconds=time.perf_counter() - begun,
            bytes=size,
            key=job.key,
            extra=dict(job.source.extra),
        )

    def _check_replaceable(self, below: Path) -> None:
        """Raise a LatentsError for a file in the place of an output that no cache made: it is the user's."""
        path = self.place / below
        if path.suffix != ".safetensors" or not path.is_file():
            return
        try:
            names = list(list_tensors(path).shapes())
        except CheckpointError:
            names = []
        if not any(name.startswith("latent") for name in names) and not Manifest(self.place).lists(below.as_posix()):
            raise LatentsError(f"{path} is no file of a cache and is not replaced; move it, or name another folder.")

    def _encoded(self, video: Iterable[Tensor], info: ClipInfo) -> Iterator[tuple[Tensor, ...]]:
        size = info.height, info.width
        return latents_on_host(self._vae, video, *size, self._memory, posterior=self._options.posterior)

    def _first_and_zeros(self, first: Tensor, info: ClipInfo) -> Iterator[Tensor]:
        """Yield a frame and then 0.0, between black and white, as many frames as a clip has, a pass at a time."""
        yield first
        config = self._vae.config
        count = self._vae.default_chunk_size(info.height, info.width) * config.temporal_compression
        for begin in range(1, info.frames, count):
            yield torch.zeros_like(first).expand(-1, -1, min(count, info.frames - begin), -1, -1)


class _First:
    """Iterates over videos (1, c, n, H, W) and keeps the first frame, (1, c, 1, H, W)."""

    def __init__(self, videos: Iterable[Tensor]) -> None:
        self._videos = videos

    def __iter__(self) -> Iterator[Tensor]:
        for number, video in enumerate(self._videos):
            if number == 0:
                self.frame = video[:, :, :1].clone()
            yield video


class _Statistics:
    """Mean and standard deviation of all values, summed in float64."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        wide = values.double()
        self._count += wide.numel()
        self._sum += wide.sum().item()
        self._squares += wide.square().sum().item()

    @property
    def mean(self) -> float:
        return self._sum / self._count

    @property
    def std(self) -> float:
        return float(max(0.0, self._squares / self._count - self.mean**2) ** 0.5)
