"""Clips to latents files and back: the commands `encode`, `decode` and `reconstruct` as functions.

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
- `load`: Loads `vae` if it is a name or path; default `wan_vae.tiny.load_vae`, for files of either kind.

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
from wan_vae.checkpoints import load_checkpoint
from wan_vae.chunks import Model, decode_chunks, encode_chunks, normalized_moments, read_clip, reconstruct_clip
from wan_vae.config import MODEL_OF_CHANNELS, load_config, preset_names
from wan_vae.errors import ClipError, LatentsError, UserError
from wan_vae.evaluation import reconstruct as comparison
from wan_vae.evaluation.contact_sheet import ContactSheet
from wan_vae.evaluation.lpips import LPIPS
from wan_vae.evaluation.metrics import Metrics, Score
from wan_vae.inference.budget import Budget, parse_bytes
from wan_vae.interchange.formats import FORMATS, OURS, Values, check_values, lost_properties, musubi_path, output_format
from wan_vae.interchange.reader import open_latents
from wan_vae.interchange.writer import ForeignWriter
from wan_vae.io import AudioSource, Clip, ClipInfo, ClipWriter, create_clip, open_clip
from wan_vae.io.atomic_output import check_distinct, check_output, written_beside
from wan_vae.io.color import over_black
from wan_vae.io.fit import Fit, Size
from wan_vae.io.frames import FramesToTensors, tensors_to_frames, to_device, to_host
from wan_vae.io.latents_file import LatentsFile, LatentsWriter
from wan_vae.io.latents_info import LatentsInfo
from wan_vae.io.timing import exact_rate
from wan_vae.io.writer import check_clip
from wan_vae.preview import LinearPreview
from wan_vae.report.facts import clip_facts, model_facts
from wan_vae.report.page import Report, check_page
from wan_vae.tiny import TinyVAE, load_vae
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


@dataclass(frozen=True)
class ReconstructResult(FileResult):
    """A clip that was encoded and decoded.

    Attributes:
        side_by_side: The clip of source and reconstruction, if it was written.
        contact_sheet: The PNG file of a few frames, if it was written.
        report: The HTML page, if it was written.
        score: How close the decoded frames are to the source's; None where the model decodes to another size, and in
            shards for all processes but the first.
    """

    side_by_side: Path | None
    contact_sheet: Path | None
    report: Path | None
    score: Score | None


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
    load: Loader = load_vae,
) -> EncodeResult:
    """Encode a clip into a latents file: ours holds all that `decode_file` needs to restore the clip.

    Args:
        clip: A video, an animation, an image, or a folder of images.
        latents: The file to write; for "musubi" the folder of the cache, in which it gets the name that is looked for.
        size: Width and height to scale the clip to; of one that is None, the clip's shape decides. None keeps them.
        fit: "stretch", "crop" or "pad" where the size has another shape; None stretches, with a notice.
        frames: First frame and the frame after the last, counted from 0 after resampling; None for the clip's ends.
        fps: Rate to resample the clip to; None keeps its own.
        length: Number of frames, from the first of `frames` on, which then has no end; None for all.
        format: "wan-vae", "comfyui", "musubi", "fastvideo" or "tensor" (see docs/latents.md); None for that of the
            ending: "comfyui" for .latent, "tensor" for .pt, .pth and .npy, else "wan-vae".
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
    check = partial(check_output, overwrite=overwrite, inputs=_inputs(clip, vae), must_be_utf8=True)
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
                f"{clip} has sound, which {latents} does not hold; `reconstruct` carries it over, and after `decode` it"
                " can be added from the clip."
            )
        _warn_of_rest(source, clip, latents)
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
        writer = stack.enter_context(output) if _is_writer(model) else None
        tensors = FramesToTensors(read_clip(source, model), model.config, model.device)
        progress(0, info.frames)
        begun = time.perf_counter()
        shape: tuple[int, ...] = ()
        encoded = encode_chunks(model, tensors, info.height, info.width, memory, moments=posterior)
        parts = (normalized_moments(model, moments) for moments in encoded) if posterior else zip(encoded)
        for chunk, *logvar in to_host(parts, model.device):
            shape = (*chunk.shape[:2], chunk.shape[2] + (shape[2] if shape else 0), *chunk.shape[3:])
            if writer is not None and logvar:
                writer.write_posterior(chunk, *logvar)
            elif writer is not None:
                writer.write(chunk)
            progress(tensors.frames, info.frames)
        if writer is not None:
            writer.finish(
                LatentsInfo(
                    frames=tensors.frames,
                    width=info.width,
                    height=info.height,
                    fps=info.fps,
                    pixel_aspect=info.pixel_aspect,
                    color=info.color,
                    config=model.config,
                    checkpoint=model.digest(),
                )
            )
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
    load: Loader = load_vae,
) -> DecodeResult:
    """Decode a latents file into a clip of the size, length and rate that the encoded clip had, where the file tells.

    Args:
        latents: A file that `encode_file` wrote, or latents of ComfyUI, musubi-tuner, FastVideo or ai-toolkit, or a
            bare tensor (.pt, .pth, .npy, .safetensors); told by its content (see docs/latents.md).
        clip: The clip to write; its ending decides the format, and none is a folder of PNG files.
        fps: Rate of the clip; None for that of the file, or where it names none 16, or 24 for Wan2.2's latents.
        values: Whether latents of other programs are "raw" or "normalized"; None takes what the format or the file
            says, or else guesses by their statistics, with a notice.
        lossless: Write the pixels exactly.
    """
    latents, clip, progress = check_path("latents", latents), check_path("clip", clip), progress or no_progress
    check_options(memory, progress, load, overwrite=overwrite, lossless=lossless)
    check_output(clip, overwrite=overwrite, inputs=_inputs(latents, vae), may_be_folder=not clip.suffix)
    check_values(values)
    source = open_latents(latents)
    if isinstance(source, LatentsFile) and values == "raw":
        raise LatentsError(f"{latents} is a latents file of this package; its latents are normalized, not raw.")
    stored = source.info.fps if isinstance(source, LatentsFile) else source.usual_fps
    rate = stored if fps is None else exact_rate(fps)
    check_clip(clip, fps=rate, lossless=lossless)
    model = vae if isinstance(vae, LinearPreview) else _model(vae, load)
    if isinstance(source, LatentsFile):
        info, read = replace(source.info, fps=rate), source.chunks
        _check_weights(latents, info, model, _name(vae))
    else:
        info = source.clip(model.config, rate)
        values = source.resolve_values(model.config, values)
        read = partial(source.normalized, config=model.config, values=values)
        by = f"decoded by {_name(vae)} (--checkpoint sets another)"
        if isinstance(model, LinearPreview):
            by = f"shown as {MODEL_OF_CHANNELS[source.shape[1]]}'s"
        default = "" if fps is not None or info.frames == 1 else f", at {rate} frames a second (--fps sets others)"
        _logger.warning(f"{latents}, {source.form.title}, does not say which model encoded it; it is {by}{default}.")
    width, height = info.width * model.config.output_upscale, info.height * model.config.output_upscale
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        keeps_alpha = _keeps_alpha(clip, info.fps, lossless, model)
        output = _create(clip, info, width, height, lossless, overwrite, keeps_alpha)
        writer = stack.enter_context(output) if _is_writer(model) else None
        chunks = to_device(read(model.default_chunk_size(info.height, info.width)), model.device)
        progress(0, info.frames)
        begun, done = time.perf_counter(), 0
        if isinstance(model, LinearPreview):
            videos: Iterable[Tensor] = model.decode_stream(chunks)
        else:
            videos = decode_chunks(model, chunks, info.height, info.width, memory)
        for frames in tensors_to_frames(videos, width, height, model.device):
            true = frames[: info.frames - done]  # the last ones are padding
            if writer is not None:
                writer.write(_for_writing(true, keeps_alpha))
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


def reconstruct_file(
    clip: str | Path,
    out: str | Path,
    vae: "Model | str | Path",
    *,
    side_by_side: str | Path | None = None,
    contact_sheet: str | Path | None = None,
    report: str | Path | None = None,
    lpips: str | Path | None = None,
    lossless: bool = False,
    size: Size | None = None,
    fit: Fit | None = None,
    frames: tuple[int | None, int | None] = (None, None),
    fps: Fraction | float | None = None,
    length: int | None = None,
    memory: Budget = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    load: Loader = load_vae,
) -> ReconstructResult:
    """Encode a clip and decode it again, and measure how close the decoded frames are to the source's.

    PSNR and SSIM are of the frames before `out` is compressed. Sound is carried over where the format of `out` can hold
    it. `clip`, `size`, `fit`, `frames`, `fps` and `length` are those of `encode_file`.

    Args:
        out: The clip to write; its ending decides the format, and none is a folder of PNG files.
        side_by_side: Also write this clip: the source on the left, the reconstruction on the right.
        contact_sheet: Also write this PNG file of a few frames: source, reconstruction, error.
        report: Also write this HTML page, which shows source, reconstruction, errors, metrics and latents of all
            frames (see docs/report.md).
        lpips: Also measure LPIPS, with this file of AlexNet's weights (see `wan_vae.evaluation.lpips.LPIPS`).
        lossless: Write the clips' pixels exactly.
    """
    clip, out, progress = check_path("clip", clip), check_path("out", out), progress or no_progress
    check_options(memory, progress, load, overwrite=overwrite, lossless=lossless)
    pairs_path = None if side_by_side is None else check_path("side_by_side", side_by_side)
    sheet_path = None if contact_sheet is None else check_path("contact_sheet", contact_sheet)
    if sheet_path is not None and sheet_path.suffix.lower() != ".png":
        raise UserError(f"The contact sheet is {sheet_path}, but it is a PNG file; name one that ends in .png.")
    distance = None if lpips is None else LPIPS("alex", check_path("lpips", lpips))
    page_path = None if report is None else check_path("report", report)
    if page_path is not None:
        check_page(page_path)
    outputs = [path for path in (out, pairs_path, sheet_path, page_path) if path is not None]
    for path in outputs:
        check_output(path, overwrite=overwrite, inputs=_inputs(clip, vae), may_be_folder=not path.suffix)
        if clip.is_dir() and clip.resolve() in path.resolve().parents:
            raise UserError(f"{path} is in {clip}, the folder that it is made from; name a place outside.")
    check_distinct(*outputs)
    with ExitStack() as stack:
        source = stack.enter_context(open_clip(clip, size=size, fit=fit, frames=frames, fps=fps, length=length))
        info = source.info
        if info.bit_depth > 8:
            _logger.warning(f"{clip} has {info.bit_depth} bits a channel; {out} is written with 8.")
        _warn_of_rest(source, clip, out)
        for path in (path for path in outputs if path not in (sheet_path, page_path)):
            check_clip(path, fps=info.fps, lossless=lossless)
        model = load_encoder(vae, load, source, clip)
        scale = model.config.output_upscale
        comparing = {"a contact sheet": sheet_path, "a report": page_path, "LPIPS": distance}
        if scale != 1 and (asked := [name for name, given in comparing.items() if given is not None]):
            raise UserError(
                f"{_name(vae)} decodes to {scale} times the size, so the source has no pixels for {asked[0]} to show"
                " errors against; take --side-by-side (in Python, side_by_side) instead."
            )
        width, height = info.width * scale, info.height * scale
        stack.enter_context(torch.inference_mode())
        writes = _is_writer(model)
        create = partial(_create, info=info, height=height, lossless=lossless, overwrite=overwrite, audio=source.audio)
        keeps = [_keeps_alpha(path, info.fps, lossless, model) for path in (out, pairs_path) if path is not None]
        writer = stack.enter_context(create(out, width=width, alpha=keeps[0])) if writes else None
        pairs = None
        if pairs_path is not None and writes:
            wide = comparison.side_by_side_width(width)
            pairs = stack.enter_context(create(pairs_path, width=wide, alpha=keeps[1]))
        sheet = ContactSheet(info.frames) if sheet_path is not None and writes else None
        metrics = Metrics(distance and distance.to(model.device)) if scale == 1 and writes else None
        page = on_latents = None
        if page_path is not None and writes:
            page = stack.enter_context(
                Report(clip.absolute().name, info.frames, width, height, info.fps, [Path(_name(vae)).name])
            )
            on_latents = partial(page.add_latents, 0, temporal_compression=model.config.temporal_compression)
        progress(0, info.frames)
        begun, done = time.perf_counter(), 0
        for original, decoded in reconstruct_clip(model, source, memory, on_latents):
            if writer is not None:
                writer.write(_for_writing(decoded, keeps[0])[None])
            if pairs is not None:
                pair = comparison.side_by_side(original, decoded)
                pairs.write(_for_writing(pair, keeps[1])[None])
            if sheet is not None:
                sheet.add(original, decoded)
            if metrics is not None:
                metrics.add(original, decoded)
                if page is not None:
                    page.add(0, original, decoded, metrics.frames[-1])
            done += 1
            progress(done, info.frames)
        # All are completed before the first gets its name, so that they appear together or not at all.
        for clip_writer in (writer, pairs):
            if clip_writer is not None:
                clip_writer.finish()
        if sheet is not None and sheet_path is not None:
            sheet.save(stack.enter_context(written_beside(sheet_path, overwrite=overwrite)))
        if page is not None and page_path is not None:
            options = {"size": size, "fit": fit, "frames": frames, "fps": fps, "length": length, "lossless": lossless}
            facts = model_facts(model, _name(vae), done, time.perf_counter() - begun)
            note = "Frames were compared before they were compressed to a clip."
            place = stack.enter_context(written_beside(page_path, overwrite=overwrite))
            page.write(place, clip_facts(clip, info, {**options, "memory": memory}), [facts], note)
    seconds = time.perf_counter() - begun
    score = None if metrics is None else metrics.score()
    return ReconstructResult(out, done, width, height, info.fps, seconds, pairs_path, sheet_path, page_path, score)


def _check_weights(latents: Path, info: LatentsInfo, model: "Model | LinearPreview", name: str) -> None:
    for field in ("latent_channels", "spatial_compression", "temporal_compression", "latent_mean", "latent_std"):
        encoded, decoding = getattr(info.config, field), getattr(model.config, field)
        if encoded != decoding:
            values = "another" if isinstance(encoded, tuple) else f"{decoding} and not {encoded}"
            raise LatentsError(
                f"{latents} was encoded with {_encoder_name(info)}, and cannot be decoded with {name}, whose"
                f" {field.replace('_', ' ')} is {values}; use the checkpoint that encoded it."
            )
    if not isinstance(model, TinyVAE | LinearPreview) and model.digest() != info.checkpoint:
        _logger.warning(f"{latents} was encoded by other weights than those of {name}.")


def _encoder_name(info: LatentsInfo) -> str:
    if load_checkpoint("nano").digest() == info.checkpoint:
        return "nano"
    return next((preset for preset in preset_names() if load_config(preset) == info.config), "another model")


def _warn_of_rest(source: Clip, clip: Path, output: Path) -> None:
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


def _for_writing(frames: NDArray[np.uint8], keeps_alpha: bool) -> NDArray[np.uint8]:
    return over_black(frames) if frames.shape[-1] == 4 and not keeps_alpha else frames


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


def _create(
    path: Path,
    info: ClipInfo | LatentsInfo,
    width: int,
    height: int,
    lossless: bool,
    overwrite: bool,
    alpha: bool,
    audio: AudioSource | None = None,
) -> ClipWriter:
    create = partial(create_clip, fps=info.fps, color=info.color, pixel_aspect=info.pixel_aspect, alpha=alpha)
    return create(path, width=width, height=height, lossless=lossless, overwrite=overwrite, audio=audio)


def _has_alpha(model: "Model | LinearPreview") -> bool:
    return model.config.image_channels == 4 and not isinstance(model, LinearPreview)


def _keeps_alpha(path: Path, fps: Fraction, lossless: bool, model: "Model | LinearPreview") -> bool:
    """Whether a clip is written with alpha; a warning where the model decodes to it and the format cannot keep it."""
    if not _has_alpha(model):
        return False
    try:
        check_clip(path, fps=fps, lossless=lossless, alpha=True)
    except ClipError as error:
        _logger.warning(f"{str(error).rstrip('.')}; transparent pixels are laid over black.")
        return False
    return True


def _name(vae: "Model | LinearPreview | str | Path") -> str:
    return str(vae) if isinstance(vae, str | Path) else "the model"


def _inputs(file: Path, vae: "Model | LinearPreview | str | Path") -> tuple[Path, ...]:
    return (file, Path(vae)) if isinstance(vae, str | Path) else (file,)


def _is_writer(model: "Model | LinearPreview") -> bool:
    return getattr(model, "rank", 0) == 0


def no_progress(done: int, total: int) -> None:
    """Report nothing."""
