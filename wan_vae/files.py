"""Clips to latents files and back: the commands `encode` and `decode` as functions.

>>> from wan_vae import decode_file, encode_file
>>> encode_file("clip.mp4", "clip.safetensors", "nano")
>>> decode_file("clip.safetensors", "copy.mp4", "nano", memory="4GiB")

Memory does not grow with the clip's length, except where a budget is too small for a stream but not for the whole clip.
Outputs appear under their names only when they are complete; after an exception nothing is left of them. All functions
take these arguments:

- `vae`: A model, or a checkpoint's name or path, which `load` turns into a model once the input is known to be usable.
  A `TinyVAE` decodes the latents of any VAE with the same statistics.
  With a `ShardedVAE` every process makes the same call and gets a result, and rank 0 alone writes.
- `memory`: A budget for the network in addition to the model and its input, result included: bytes, text such as
  "4GiB", or "auto" for four fifths of the free memory. With a `ShardedVAE` it is the budget of each process.
- `overwrite`: Replace outputs that exist.
- `progress`: Called with the number of frames done and in total: with 0 once all inputs are open, then after every
  chunk. It may raise an exception to cancel the call.
- `load`: Loads `vae` if it is a name or path; by default on a GPU if there is one, in the dtype it is stored in. The
  commands also choose the dtype that is fast there: `functools.partial(wan_vae.load_vae, device="auto", dtype="auto")`.

They raise a UserError if a file, the model or an option cannot be used, or if the budget is too small.
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_vae.alpha_pair import AlphaPair
from wan_vae.arguments import check_flag, check_path, check_type, shown
from wan_vae.chunks import Model, decode_chunks, latents_on_host, read_clip
from wan_vae.config import MODEL_OF_CHANNELS, load_config
from wan_vae.errors import ClipError, LatentsError, UserError
from wan_vae.inference.budget import Budget, parse_bytes
from wan_vae.interchange.formats import FORMATS, OURS, Values, check_values, lost_properties, musubi_path, output_format
from wan_vae.interchange.reader import check_model, open_latents, refuse_raw
from wan_vae.interchange.writer import ForeignWriter
from wan_vae.io import AudioSource, Clip, ClipInfo, create_clip, open_clip
from wan_vae.io.atomic_output import check_output
from wan_vae.io.color import over_black
from wan_vae.io.fit import Fit, Size
from wan_vae.io.frames import FramesToTensors, tensors_to_frames, to_device
from wan_vae.io.latents_file import LatentsFile, LatentsWriter
from wan_vae.io.latents_info import LatentsInfo
from wan_vae.io.timing import exact_rate
from wan_vae.io.writer import check_clip
from wan_vae.preview import LinearPreview
from wan_vae.tiny import TinyVAE, load_on_best_device
from wan_vae.vae import WanVAE

if TYPE_CHECKING:
    from wan_vae.sharding import ShardedVAE

Loader: TypeAlias = "Callable[[str | Path], Model]"
Progress: TypeAlias = Callable[[int, int], object]

_logger = logging.getLogger("wan_vae")


@dataclass(frozen=True)
class FileResult:
    """What was written.

    Attributes:
        output: The file or folder.
        frames: Frames of the clip, without padding.
        width, height: Size of the encoded or the written clip, in pixels.
        fps: Frame rate of the clip.
        seconds: Time from the first frame read to the last one written.
    """

    output: Path
    frames: int
    width: int
    height: int
    fps: Fraction
    seconds: float

    @property
    def frames_per_second(self) -> float:
        """Mean speed of the call, not of the clip."""
        return self.frames / self.seconds


@dataclass(frozen=True)
class EncodeResult(FileResult):
    """A latents file that was written; `shape` is that of the latents, (1, z, t, h, w)."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class DecodeResult(FileResult):
    """A clip that was decoded."""


def encode_file(
    clip: str | Path,
    latents: str | Path,
    vae: "Model | str | Path",
    *,
    size: Size | None = None,
    fit: Fit | None = None,
    frames: tuple[int | None, int | None] = (None, None),
    fps: Fraction | float | None = None,
    length: int | None = None,
    format: str | None = None,  # noqa: A002  # as the command line calls it
    values: Values | None = None,
    posterior: bool = False,
    memory: Budget = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    load: Loader = load_on_best_device,
) -> EncodeResult:
    """Encode a clip into a latents file: ours holds all that `decode_file` needs to restore the clip.

    Args:
        clip: A video, an animation, an image, or a folder of images.
        latents: The file to write; for "musubi" the folder of the cache, in which it gets the name that is looked for.
        size: Width and height to scale the clip to; of one that is None, the clip's shape decides. None keeps them.
        fit: "stretch", "crop" or "pad" where the size has another shape; None stretches, with a notice.
        frames: First frame and the frame after the last, counted from 0 after resampling; None for the clip's ends.
        fps: Rate to resample the clip to; None keeps its own.
        length: Number of frames to take from `frames[0]` on, whose `frames[1]` is then None; None for all.
        format: "wan-vae", "comfyui", "musubi", "fastvideo" or "tensor" (see docs/latents.md); None for that of the
            extension: "comfyui" for .latent, "tensor" for .pt, .pth and .npy, else "wan-vae".
        values: Whether a bare tensor is to hold "raw" or "normalized" latents; None for normalized.
        posterior: Also store the logarithm of the variance of the normalized latents, which only our own file holds.
    """
    clip, latents, progress = check_path("clip", clip), check_path("latents", latents), progress or no_progress
    check_options(memory, progress, load, overwrite=overwrite, posterior=posterior)
    check_values(values)
    format = output_format(latents, format, values)  # noqa: A001
    if posterior and format != OURS:
        raise LatentsError(
            f"{latents}, {FORMATS[format].title}, has no place for the log-variance; only a file of ours has, such as"
            f" {latents.with_suffix('.safetensors').name} with --format wan-vae."
        )
    check = partial(check_output, overwrite=overwrite, inputs=inputs_of(clip, vae), must_be_utf8=True)
    if format != "musubi":
        check(latents)
    with ExitStack() as stack:
        source = stack.enter_context(open_clip(clip, size=size, fit=fit, frames=frames, fps=fps, length=length))
        info = source.info
        if format == "musubi":
            latents = musubi_path(latents, clip, info, frames[0] or 0)
            check(latents)
        if info.has_audio:
            _logger.warning(
                f"{clip} has audio, which {latents} does not hold; `reconstruct` carries it over, and after `decode` it"
                " can be added from the clip."
            )
        warn_of_rest(source, clip, latents)
        model = load_encoder(vae, load, source, clip)
        if posterior and not isinstance(model, WanVAE):
            raise UserError("Neither a tiny model nor one in shards gives the log-variance; leave out --posterior.")
        stack.enter_context(torch.inference_mode())
        if format == OURS:
            output = LatentsWriter(latents, overwrite=overwrite)
        else:
            if lost := lost_properties(info, model.config):
                _logger.warning(f"{latents}, {FORMATS[format].title}, does not hold the clip's {' and '.join(lost)}.")
            is_image = info.container == "image" and info.frames == 1
            output = ForeignWriter(latents, format, model.config, values=values, is_image=is_image, overwrite=overwrite)
        writer = stack.enter_context(output) if is_first_rank(model) else None
        tensors = FramesToTensors(read_clip(source, model), model.config, model.device)
        progress(0, info.frames)
        begun = time.perf_counter()
        shape: tuple[int, ...] = ()
        encoded = latents_on_host(model, tensors, info.height, info.width, memory, posterior=posterior)
        for chunk, *logvar in encoded:
            shape = (*chunk.shape[:2], chunk.shape[2] + (shape[2] if shape else 0), *chunk.shape[3:])
            if writer is not None and logvar:
                writer.write_posterior(chunk, *logvar)
            elif writer is not None:
                writer.write(chunk)
            progress(tensors.frames, info.frames)
        if writer is not None:
            writer.finish(LatentsInfo.of_clip(info, tensors.frames, model.config, model.digest()))
    seconds = time.perf_counter() - begun
    return EncodeResult(latents, tensors.frames, info.width, info.height, info.fps, seconds, shape)


def decode_file(
    latents: str | Path,
    clip: str | Path,
    vae: "Model | LinearPreview | str | Path",
    *,
    fps: Fraction | float | None = None,
    values: Values | None = None,
    memory: Budget = "auto",
    lossless: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    load: Loader = load_on_best_device,
) -> DecodeResult:
    """Decode a latents file into a clip of the size, length and rate that the encoded clip had, where the file tells.

    Args:
        latents: A file that `encode_file` wrote, or latents of ComfyUI, musubi-tuner, FastVideo or ai-toolkit, or a
            bare tensor (.pt, .pth, .npy, .safetensors); told by its content (see docs/latents.md).
        clip: The clip to write; its extension decides the format, and none is a folder of PNG files.
        fps: Rate of the clip; None for that of the file, or where it names none 16, or 24 for Wan2.2's latents.
        values: Whether latents of other programs are "raw" or "normalized"; None takes what the format or the file
            says, or else guesses by their statistics, with a notice.
        lossless: Write the pixels exactly.
    """
    latents, clip, progress = check_path("latents", latents), check_path("clip", clip), progress or no_progress
    check_options(memory, progress, load, overwrite=overwrite, lossless=lossless)
    check_output(clip, overwrite=overwrite, inputs=inputs_of(latents, vae), may_be_folder=not clip.suffix)
    check_values(values)
    source = open_latents(latents)
    if isinstance(source, LatentsFile):
        refuse_raw(source, values)
    stored = source.info.fps if isinstance(source, LatentsFile) else source.usual_fps
    rate = stored if fps is None else exact_rate(fps)
    check_clip(clip, fps=rate, lossless=lossless)
    model = vae if isinstance(vae, LinearPreview) else _model(vae, load)
    if isinstance(source, LatentsFile):
        info, read = replace(source.info, fps=rate), source.chunks
        check_model(source, model.config, model_name(vae))
        if not isinstance(model, TinyVAE | LinearPreview) and model.digest() != info.checkpoint:
            _logger.warning(f"{latents} was encoded by other weights than those of {model_name(vae)}.")
    else:
        info = source.clip(model.config, rate)
        values = source.resolve_values(model.config, values)
        read = partial(source.normalized, config=model.config, values=values)
        by = f"decoded by {model_name(vae)} (--checkpoint sets another)"
        if isinstance(model, LinearPreview):
            by = f"shown as {MODEL_OF_CHANNELS[source.shape[1]]}'s"
        default = "" if fps is not None or info.frames == 1 else f", at {rate} frames a second (--fps sets others)"
        _logger.warning(f"{latents}, {source.form.title}, does not say which model encoded it; it is {by}{default}.")
    width, height = info.width * model.config.output_upscale, info.height * model.config.output_upscale
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        output = DecodedClip(stack, clip, info, width, height, model, lossless=lossless, overwrite=overwrite)
        chunks = to_device(read(model.default_chunk_size(info.height, info.width)), model.device)
        progress(0, info.frames)
        begun, done = time.perf_counter(), 0
        if isinstance(model, LinearPreview):
            videos: Iterable[Tensor] = model.decode_stream(chunks)
        else:
            videos = decode_chunks(model, chunks, info.height, info.width, memory)
        for frames in tensors_to_frames(videos, width, height, model.device):
            true = frames[: info.frames - done]  # the last ones are padding
            output.write(true)
            done += len(true)
            progress(done, info.frames)
    seconds = time.perf_counter() - begun
    return DecodeResult(clip, done, width, height, info.fps, seconds)


def preview_file(
    latents: str | Path,
    clip: str | Path,
    *,
    fps: Fraction | float | None = None,
    values: Values | None = None,
    lossless: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DecodeResult:
    """Show a latents file without weights (see `wan_vae.preview`), in a clip like that of `decode_file`.

    Each latent is shown for as long as the frames that it stands for. Where the file does not name its model, latents
    of 16 channels are taken for those of Wan2.1, and of 48 for those of Wan2.2. Arguments are those of `decode_file`.

    Raises:
        UserError: The latents or the clip cannot be read or written, or there is no preview for their model.
    """
    source = open_latents(check_path("latents", latents))
    if isinstance(source, LatentsFile):
        config = source.info.config
    elif source.shape[1] in MODEL_OF_CHANNELS:
        config = load_config(MODEL_OF_CHANNELS[source.shape[1]])
    else:
        raise LatentsError(f"{latents} has {source.shape[1]} channels; Wan2.1's have 16 and Wan2.2's 48.")
    options: dict[str, Any] = {"lossless": lossless, "overwrite": overwrite, "progress": progress}
    return decode_file(latents, clip, LinearPreview(config), fps=fps, values=values, **options)


def warn_of_rest(source: Clip, clip: Path, output: Path) -> None:
    """Log what a clip has that a file made from it does not hold."""
    if source.left_out:
        _logger.warning(f"{clip} has {' and '.join(source.left_out)}, which {output} does not hold.")


def check_options(memory: Budget, progress: Progress, load: Loader, **flags: bool) -> None:
    """Refuse arguments of the wrong kind, before any work."""
    check_type("progress", progress, Callable, "None or a function of the frames done and in total")
    check_type("load", load, Callable, "a function that loads a checkpoint")
    for name, flag in flags.items():
        check_flag(name, flag)
    if not isinstance(memory, str) or memory != "auto":
        parse_bytes(memory, torch.device("cpu"))


def _model(vae: "Model | str | Path", load: Loader) -> Model:
    model = load(vae) if isinstance(vae, str | Path) else vae
    if not isinstance(model, WanVAE | TinyVAE | AlphaPair) and not hasattr(model, "rank"):  # torch may lack ShardedVAE
        raise UserError(
            f"vae is {shown(model)}; it must be a WanVAE, a TinyVAE, a ShardedVAE, or a checkpoint's name or path."
        )
    return model


def load_encoder(vae: "Model | str | Path", load: Loader, source: Clip, clip: Path) -> "WanVAE | TinyVAE | ShardedVAE":
    """Return a model after a check that it encodes the clip, which will be read with alpha if the model takes that."""
    model = _model(vae, load)
    if isinstance(model, AlphaPair):
        raise UserError("A pair of models for colors and alpha decodes only; leave out the one for alpha.")
    if model.config.images_only and source.info.frames > 1:
        raise UserError(
            f"{clip} has {source.info.frames} frames, but the model encodes single pictures; select one with --frames"
            " 0:1 (in Python, frames)."
        )
    source.alpha = _has_alpha(model)
    return model


def _has_alpha(model: "Model | LinearPreview") -> bool:
    return model.config.image_channels == 4 and not isinstance(model, LinearPreview)


class DecodedClip:
    """A clip that is written as it is decoded, by the process of rank 0 alone.

    Args:
        place: Completes the file under its name, or removes it after an exception.
        path: The file; its extension decides the format.
        info: Rate and colors.
        width: In pixels.
        height: In pixels.
        model: What decodes; where it gives alpha that the format cannot keep, a warning says so.
        lossless: Whether pixels are kept exactly.
        overwrite: Whether an existing file is replaced.
        audio: Audio to write with the frames, if there is any.
    """

    def __init__(
        self,
        place: ExitStack,
        path: Path,
        info: ClipInfo | LatentsInfo,
        width: int,
        height: int,
        model: "Model | LinearPreview",
        *,
        lossless: bool,
        overwrite: bool,
        audio: AudioSource | None = None,
    ) -> None:
        self._alpha = _has_alpha(model)
        if self._alpha:
            try:
                check_clip(path, fps=info.fps, lossless=lossless, alpha=True)
            except ClipError as error:
                _logger.warning(f"{str(error).rstrip('.')}; transparent pixels are laid over black.")
                self._alpha = False
        form: dict[str, Any] = {"fps": info.fps, "color": info.color, "pixel_aspect": info.pixel_aspect}
        form |= {"alpha": self._alpha, "lossless": lossless, "overwrite": overwrite, "audio": audio}
        writer = create_clip(path, width=width, height=height, **form)
        self._writer = place.enter_context(writer) if is_first_rank(model) else None

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames (n, height, width, c), with alpha if the model gives it."""
        if self._writer is not None:
            self._writer.write(over_black(frames) if frames.shape[-1] == 4 and not self._alpha else frames)

    def finish(self) -> None:
        """Complete the file, which gets its name when `place` ends."""
        if self._writer is not None:
            self._writer.finish()


def is_first_rank(model: "Model | LinearPreview") -> bool:
    """Whether this process writes, of all that share a clip."""
    return getattr(model, "rank", 0) == 0


def model_name(vae: "Model | LinearPreview | str | Path", unnamed: str = "the model") -> str:
    """Return what messages call a model: the name or path it was given by, or `unnamed`."""
    return str(vae) if isinstance(vae, str | Path) else unnamed


def inputs_of(file: Path, vae: "Model | LinearPreview | str | Path") -> tuple[Path, ...]:
    """Return the files that no output may replace."""
    return (file, Path(vae)) if isinstance(vae, str | Path) else (file,)


def no_progress(done: int, total: int) -> None:
    """Report nothing."""
