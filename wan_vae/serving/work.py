"""What the worker does for a request: decoding and encoding, in the formats that diffusers' client expects."""

import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from wan_vae.chunks import decode_chunks, encode_chunks, reconstruct_clip
from wan_vae.errors import UserError
from wan_vae.evaluation.metrics import Metrics
from wan_vae.inference.budget import Budget
from wan_vae.io import open_clip
from wan_vae.io.color import RGB
from wan_vae.io.ffmpeg_writer import FRAGMENTED, AvSink
from wan_vae.io.frames import FramesToTensors, frames_to_tensor, tensors_to_frames
from wan_vae.posterior import LatentStatistics
from wan_vae.report.facts import clip_facts, model_facts
from wan_vae.report.page import Report
from wan_vae.serving.limits import Limits, RefusedError, TensorHead
from wan_vae.tiny import TinyVAE
from wan_vae.vae import WanVAE

Model: TypeAlias = WanVAE | TinyVAE
Answer: TypeAlias = tuple[Mapping[str, str], Iterator[bytes]]
"""Headers, and the body piece by piece. After every piece, also an empty one, the worker may end the work."""

_PIECE = 2**20  # bytes


@dataclass(frozen=True)
class Scaling:
    """How latents of a request relate to raw ones; diffusers' parameters of these names.

    Attributes:
        do_scaling: Without a factor: the latents are normalized, by mean and standard deviation of each channel.
        factor: Latents are `(raw - shift) * factor`.
        shift: See `factor`.
    """

    do_scaling: bool = False
    factor: float | None = None
    shift: float | None = None

    def to_normalized(self, latents: Tensor, statistics: LatentStatistics) -> Tensor:
        """Latents of a request -> normalized latents, both (B, z, t, h, w)."""
        if self.do_scaling and self.factor is None:
            return latents
        raw = latents if self.factor is None else latents / self.factor
        return statistics.normalized(raw if self.shift is None else raw + self.shift)

    def from_raw(self, raw: Tensor, statistics: LatentStatistics) -> Tensor:
        """Raw latents -> latents as asked for, both (B, z, t, h, w)."""
        if self.do_scaling and self.factor is None:
            return statistics.normalized(raw)
        shifted = raw if self.shift is None else raw - self.shift
        return shifted if self.factor is None else shifted * self.factor


@dataclass(frozen=True)
class Server:
    """A model and how it may work."""

    model: Model
    memory: Budget
    limits: Limits
    name: str  # of the model, for people

    def decode(
        self,
        body: BinaryIO,
        head: TensorHead,
        scaling: Scaling,
        kind: Literal["tensor", "unit", "levels", "png", "jpg"],
    ) -> Answer:
        """Latents -> pixels.

        Args:
            kind: "tensor" for (B, 3, T, H, W) in [-1, 1] in the decoder's dtype; "unit" for (B * T, 3, H, W) in [0, 1]
                in that dtype; "levels" for (B * T, H, W, 3) in uint8; or a picture's format.
        """
        batch, frames, height, width = head.check_latents(self.model.config)
        dtype, pictures = self.model.decoder_dtype, batch * frames
        headers = {
            "tensor": _tensor_headers([batch, 3, frames, height, width], dtype),
            "unit": _tensor_headers([pictures, 3, height, width], dtype),
            "levels": _tensor_headers([pictures, height, width, 3], torch.uint8),
            "png": {"content-type": "image/png"},
            "jpg": {"content-type": "image/jpeg"},
        }
        decoded = self._decoded(body, head, scaling)

        def pieces() -> Iterator[bytes]:
            video, done = torch.empty(batch, 3, frames, height, width, dtype=dtype), 0
            for part in decoded:
                video[:, :, done : done + part.shape[2]] = part
                done += part.shape[2]
                yield b""
            if kind == "tensor":
                yield from _tensor_pieces(video)
                return
            unit = (video * 0.5 + 0.5).clamp(0, 1).transpose(1, 2).flatten(0, 1)  # as diffusers' image processor
            if kind == "unit":
                yield from _tensor_pieces(unit)
                return
            levels = (unit.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            if kind == "levels":
                yield from _tensor_pieces(levels)
                return
            file = io.BytesIO()
            Image.fromarray(levels[0].numpy()).save(file, "JPEG" if kind == "jpg" else "PNG", quality=95)
            yield file.getvalue()

        return headers[kind], pieces()

    def decode_mp4(self, body: BinaryIO, head: TensorHead, scaling: Scaling, fps: Fraction, media: str) -> Answer:
        """Latents of one clip -> fragmented mp4 (H.264), as it comes."""
        _, _, height, width = head.check_latents(self.model.config)
        largest = FRAGMENTED.largest_side
        if max(height, width) > largest:
            raise UserError(
                f"The video would be {width}x{height}, and mp4 holds sides of {largest}; ask for raw frames."
            )
        videos = self._decoded(body, head, scaling)

        def pieces() -> Iterator[bytes]:
            with tempfile.TemporaryDirectory(prefix="wan-vae-") as folder:
                path = Path(folder, "clip.mp4")
                path.touch()
                with path.open("rb") as file:
                    sink = AvSink(FRAGMENTED, width, height, fps, RGB, Fraction(1), None, path)
                    try:
                        for frames in tensors_to_frames(videos, width, height, self.model.device):
                            for picture in frames:
                                sink.write(picture)
                            yield file.read()
                    except BaseException:
                        sink.abort()
                        raise
                    sink.finish()
                    yield file.read()

        return {"content-type": media}, pieces()

    def encode(self, body: BinaryIO, head: TensorHead | None, scaling: Scaling) -> Answer:
        """A video (B, 3, T, H, W) in [-1, 1], or without a head a picture in a file -> latents (B, z, t, h, w)."""
        video = _read_picture(body, self.limits) if head is None else _read_tensor(body, head)
        batch, _, frames, height, width = video.shape
        config, side = self.model.config, self.model.config.spatial_compression
        count = 1 + (frames - 1) // config.temporal_compression
        shape = [batch, config.latent_channels, count, height // side, width // side]
        chunks = torch.split(video, config.temporal_compression * self.model.default_chunk_size(height, width), dim=2)

        def pieces() -> Iterator[bytes]:
            parts = []
            for part in self._encoded(chunks, scaling):
                parts.append(part.cpu())
                yield b""
            yield from _tensor_pieces(torch.cat(parts, dim=2))

        return _tensor_headers(shape, self.model.dtype), pieces()

    def encode_clip(self, body: BinaryIO, scaling: Scaling) -> Answer:
        """A clip in a file -> latents as they come: the bytes of (t, z, h, w)."""
        stack = ExitStack()
        with stack:
            clip = stack.enter_context(open_clip(body))
            info, config = clip.info, self.model.config
            self.limits.check_clip(info.frames, info.height, info.width)
            side = config.spatial_compression
            size = [config.latent_channels, -(-info.height // side), -(-info.width // side)]
            count = 1 + -(-(info.frames - 1) // config.temporal_compression)
            chunk = config.temporal_compression * self.model.default_chunk_size(info.height, info.width)
            tensors = FramesToTensors(clip.chunks(chunk), config, self.model.device)
            kept = stack.pop_all()

        def pieces() -> Iterator[bytes]:
            with kept:
                for part in self._encoded(tensors, scaling):
                    yield tensor_bytes(part[0].transpose(0, 1).cpu())

        return _tensor_headers([count, *size], self.model.dtype), pieces()

    def report(self, body: BinaryIO, name: str) -> Answer:
        """A clip in a file -> lines of frames done and in all, an empty line, and the report's page; or `error: `."""
        model, limits = self.model, self.limits
        if model.config.output_upscale != 1:
            raise RefusedError(
                422,
                f"{self.name} decodes to {model.config.output_upscale} times the size, so the clip has no pixels to"
                " compare with.",
            )
        with ExitStack() as stack:
            clip = stack.enter_context(open_clip(body))
            info = clip.info
            limits.check_clip(info.frames, info.height, info.width)
            report = stack.enter_context(Report(name, info.frames, info.width, info.height, info.fps, [self.name]))
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wan-vae-")), "report.html")
            kept = stack.pop_all()

        def pieces() -> Iterator[bytes]:
            with kept:
                yield f"0 {info.frames}\n".encode()
                metrics, begun = Metrics(), time.perf_counter()
                on_latents = partial(report.add_latents, 0, temporal_compression=model.config.temporal_compression)
                try:
                    for original, decoded in reconstruct_clip(model, clip, self.memory, on_latents):
                        metrics.add(original, decoded)
                        report.add(0, original, decoded, metrics.frames[-1])
                        yield f"{len(metrics.frames)} {info.frames}\n".encode()
                except UserError as error:  # a clip that is damaged further on; the status is sent
                    yield f"error: {error}\n".encode()
                    return
                facts = model_facts(model, self.name, len(metrics.frames), time.perf_counter() - begun)
                report.write(path, clip_facts(Path(name), info, {}), [facts], "Frames were compared as decoded.")
                yield b"\n"
                with path.open("rb") as file:
                    yield from iter(partial(file.read, _PIECE), b"")

        # Browsers hold back the first kilobyte of plain text to guess what it is, unless told not to.
        headers = {"content-type": "text/plain; charset=utf-8", "x-content-type-options": "nosniff"}
        return headers, pieces()

    def _decoded(self, body: BinaryIO, head: TensorHead, scaling: Scaling) -> Iterable[Tensor]:
        model, latents = self.model, _read_tensor(body, head)
        if not torch.isfinite(latents).all():
            raise RefusedError(422, "The latents hold NaN or infinite values.")
        statistics = LatentStatistics.of(model.config, latents.dtype, latents.device)
        normalized = scaling.to_normalized(latents.float(), statistics)
        side = model.config.spatial_compression
        height, width = head.shape[3] * side, head.shape[4] * side
        chunks = torch.split(normalized, model.default_chunk_size(height, width), dim=2)
        return decode_chunks(model, (chunk.to(model.device) for chunk in chunks), height, width, self.memory)

    def _encoded(self, video: Iterable[Tensor], scaling: Scaling) -> Iterator[Tensor]:
        """Yield the posterior's mean as asked for."""
        model, iterator = self.model, iter(video)
        first = next(iterator).to(model.device)

        def all_chunks() -> Iterator[Tensor]:
            yield first
            yield from (chunk.to(model.device) for chunk in iterator)

        height, width = first.shape[3:]
        moments = isinstance(model, WanVAE)
        # Once, for a GPU waits for numbers from the host.
        statistics = LatentStatistics.of(model.config, self.model.dtype, model.device)
        for part in encode_chunks(model, all_chunks(), height, width, self.memory, moments=moments):
            raw = part.chunk(2, dim=1)[0] if moments else statistics.denormalized(part)
            yield scaling.from_raw(raw, statistics)


def _tensor_pieces(tensor: Tensor) -> Iterator[bytes]:
    data = memoryview(tensor_bytes(tensor))
    return (bytes(data[start : start + _PIECE]) for start in range(0, len(data), _PIECE))


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the values of a tensor on the CPU, in the order of its dimensions."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _tensor_headers(shape: list[int], dtype: torch.dtype) -> dict[str, str]:
    name = str(dtype).removeprefix("torch.")
    return {"content-type": "tensor/binary", "shape": json.dumps(shape), "dtype": name}


def _read_tensor(body: BinaryIO, head: TensorHead) -> Tensor:
    body.seek(0)
    tensor = torch.empty(head.shape, dtype=head.dtype)
    read: Callable[[Any], int] = body.readinto  # type: ignore[attr-defined]
    head.check_length(read(tensor.view(-1).view(torch.uint8).numpy()))
    return tensor


def _read_picture(body: BinaryIO, limits: Limits) -> Tensor:
    body.seek(0)
    with open_clip(body) as clip:
        limits.check_clip(clip.info.frames, clip.info.height, clip.info.width)
        if clip.info.frames != 1:
            raise RefusedError(422, f"The body is a clip of {clip.info.frames} frames; send a picture, or its tensor.")
        (frames,) = clip.chunks(1)
    return frames_to_tensor(frames)
