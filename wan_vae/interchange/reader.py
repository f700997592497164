"""Latents files of every program, opened for reading; the tensor stays on disk where its layout allows that."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wan_vae.arguments import check_count
from wan_vae.checkpoints import load_checkpoint
from wan_vae.checkpoints.tensor_files import StoredTensor, TensorFile, list_tensors, tensor_format
from wan_vae.config import VAEConfig, load_config, preset_names
from wan_vae.errors import CheckpointError, LatentsError
from wan_vae.interchange.formats import (
    FORMATS,
    VALUES_KEY,
    Format,
    Values,
    check_values,
    clip_of,
    recognize,
    usual_name,
)
from wan_vae.io.latents_file import DTYPE_NAMES, LatentsFile, check_finite, latents_metadata, read_chunks
from wan_vae.io.latents_info import LatentsInfo
from wan_vae.io.safetensors_file import TensorInFile, version
from wan_vae.posterior import LatentStatistics

_FPS = {48: Fraction(24)}  # of the models with so many latent channels
_USUAL_FPS = Fraction(16)
_VALUES_TO_GUESS_FROM = 2**22
_UNSURE = 0.05  # nats a value; whole clips of natural images differ by tenths
_NUMPY = b"\x93NUMPY"
_logger = logging.getLogger("wan_vae")


@dataclass(frozen=True)
class Guess:
    """Whether latents are raw or normalized, by their statistics.

    Attributes:
        values: The likelier of the two.
        margin: By how much, in nats per value; 0 for a model that does not normalize.
    """

    values: Values
    margin: float


class ForeignLatents:
    """A latents file of another program, or a bare tensor.

    Attributes:
        form: The format.
        shape: (1, z, t, h, w).
        dtype: safetensors' name of its dtype, such as "F32".
        values: Whether the format or the file says that the values are raw or normalized; None if neither does.
        named: Whether it is this file that says so.

    Raises:
        LatentsError: The file cannot be read, or is none that holds latents of one clip.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        try:
            listed = _list(self._path)
            name, key = recognize(tuple(listed.tensors), listed.metadata)
            stored = _find(listed, key, name)
            self.form: Format = FORMATS[name]
            like = stored.like
            self.shape = _clip_shape(tuple(like.shape), name)
            self.dtype = DTYPE_NAMES[like.dtype]
        except (CheckpointError, LatentsError) as error:
            reason = str(error).removeprefix(f"{path} ")
            raise LatentsError(f"{path} is no latents file: {reason}") from error
        said = listed.metadata.get(VALUES_KEY)
        self.named = self.form.values is None and said in ("raw", "normalized")
        self.values: Values | None = said if self.named else self.form.values  # type: ignore[assignment]
        self._listed, self._stored = listed, stored

    @property
    def usual_fps(self) -> Fraction:
        """The frame rate of the model that these latents are likely of: no format stores one."""
        return _FPS.get(self.shape[1], _USUAL_FPS)

    def clip(self, config: VAEConfig, fps: Fraction) -> LatentsInfo:
        """Return the properties of the clip that a model decodes these latents to.

        Raises:
            LatentsError: They are not latents of such a model.
        """
        channels, frames = self.shape[1:3]
        if channels != config.latent_channels:
            hint = "choose the checkpoint that encoded it with --checkpoint."
            if channels == 2 * config.latent_channels:
                hint = "mean and log-variance, perhaps: save the mean alone."
            elif channels == 1 and frames == config.latent_channels:
                hint = "a picture, perhaps: save it as (1, z, 1, h, w)."
            elif frames == config.latent_channels:
                hint = "time comes before the channels, perhaps: save it as (1, z, t, h, w)."
            raise LatentsError(
                f"{self._path} holds {channels} channels {self.shape}, and the model's latents have"
                f" {config.latent_channels}; {hint}"
            )
        return clip_of(self.shape, config, fps)

    def chunks(self, count: int) -> Iterator[Tensor]:
        """Yield latents (1, z, n, h, w) as they are stored; n is `count`, or less for the last chunk.

        Raises:
            LatentsError: A value is NaN or infinite, or the file has changed since it was opened.
            UserError: `count` is no whole number above 0.
        """
        check_count("count", count)
        return self._chunks(count)

    def _chunks(self, count: int) -> Iterator[Tensor]:
        name, place = str(self._path), self._stored.place
        if place is not None and self._stored.like.is_contiguous() and not self._stored.like.is_neg():
            path, start = place
            tensor = TensorInFile(self.dtype, self.shape, start)
            yield from read_chunks(path, name, tensor, self._listed.versions[path], count)
            return
        try:
            whole = TensorFile({name: self._stored}, {}, self._listed.versions).read([name])[name]
        except CheckpointError as error:
            raise LatentsError(f"{name} cannot be read: {error}") from error
        check_finite(whole, name, 0)
        yield from torch.split(whole.view(self.shape), count, dim=2)

    def guess(self, config: VAEConfig) -> Guess:
        """Return whether these latents are raw or normalized by a model's statistics, from their first few millions."""
        _, channels, _, height, width = self.shape
        sample = next(self.chunks(max(1, _VALUES_TO_GUESS_FROM // max(1, channels * height * width)))).double()
        margin = LatentStatistics.of(config, sample.dtype, sample.device).raw_margin(sample)
        return Guess("raw" if margin > 0 else "normalized", abs(margin))

    def resolve_values(self, config: VAEConfig, values: Values | None) -> Values:
        """Return whether the latents are raw or normalized: as asked for, as the file says, or guessed, with a notice.

        A notice also says if the request contradicts the format.
        """
        if values is not None:
            if self.values not in (None, values):
                _logger.warning(
                    f"{self._path} is {self.form.title}, which holds {self.values} latents; it is read as {values}."
                )
            return values
        if self.values is not None:
            return self.values
        guess = self.guess(config)
        if guess.margin > 0:
            sure = "" if guess.margin > _UNSURE else ", though hardly more than the other"
            _logger.warning(
                f"{self._path} does not say whether its latents are raw or normalized; by their statistics they look"
                f" {guess.values}{sure}. --values raw or --values normalized (in Python, values) says it."
            )
        return guess.values

    def normalized(self, count: int, config: VAEConfig, values: Values) -> Iterator[Tensor]:
        """Yield normalized latents in chunks; of raw ones in float32 at least."""
        for chunk in self.chunks(count):
            if values == "raw":
                wide = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
                yield LatentStatistics.of(config, wide.dtype, wide.device).normalized(wide)
            else:
                yield chunk


def open_latents(path: str | os.PathLike[str]) -> LatentsFile | ForeignLatents:
    """Open a latents file of this package or of another program, told by its content.

    Raises:
        LatentsError: The file cannot be read, or is none that holds latents of one clip.
    """
    return ForeignLatents(path) if latents_metadata(Path(path)) is None else LatentsFile(path)


def find_latents(path: Path) -> ForeignLatents | None:
    """Return the latents of another program that a file holds, None for any other file."""
    try:
        return ForeignLatents(path) if path.is_file() and latents_metadata(path) is None else None
    except LatentsError:
        return None


def refuse_raw(file: LatentsFile, values: Values | None) -> None:
    """Raise a LatentsError if latents of this package are asked for as raw ones."""
    if values == "raw":
        raise LatentsError(f"{file.name} is a latents file of this package; its latents are normalized, not raw.")


def check_model(file: LatentsFile, config: VAEConfig, model: str) -> None:
    """Raise a LatentsError if latents of this package are not those of a model of this architecture, called `model`."""
    for field in ("latent_channels", "spatial_compression", "temporal_compression", "latent_mean", "latent_std"):
        encoded, decoding = getattr(file.info.config, field), getattr(config, field)
        if encoded != decoding:
            differing = "another" if isinstance(encoded, tuple) else f"{decoding} and not {encoded}"
            raise LatentsError(
                f"{file.name} was encoded with {_encoder_name(file.info)}, and cannot be decoded with {model}, whose"
                f" {field.replace('_', ' ')} is {differing}; use the checkpoint that encoded it."
            )


def _encoder_name(info: LatentsInfo) -> str:
    if load_checkpoint("nano").digest() == info.checkpoint:
        return "nano"
    return next((preset for preset in preset_names() if load_config(preset) == info.config), "another model")


def read_latents(path: str | os.PathLike[str], config: VAEConfig, *, values: Values | None = None) -> Tensor:
    """Return the normalized latents (1, z, t, h, w) of a file of any program.

    Args:
        path: The file.
        config: The architecture of the model that encoded them, `vae.config`; its statistics normalize raw latents.
        values: Whether they are "raw" or "normalized"; None takes what the format or the file says, or else guesses by
            their statistics, with a notice.

    Raises:
        LatentsError: The file cannot be read, or does not fit the model.
    """
    check_values(values)
    source = open_latents(path)
    if isinstance(source, LatentsFile):
        refuse_raw(source, values)
        check_model(source, config, "this model")
        return next(source.chunks(source.shape[2]))
    source.clip(config, source.usual_fps)
    return next(source.normalized(source.shape[2], config, source.resolve_values(config, values)))


def _list(path: Path) -> TensorFile:
    kind = tensor_format(path)
    if kind in ("archive", "pickle", "safetensors"):
        return list_tensors(path, bare=True)
    with path.open("rb") as file:
        if file.read(len(_NUMPY)) != _NUMPY:
            raise LatentsError(
                "it is neither safetensors, nor a file of torch.save, nor .npy; `wan-vae encode` writes latents files."
            )
        file.seek(0)
        try:
            # Later versions are for headers of up to 4 GiB, which only structured arrays need.
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("it is not of version 1.0")
            shape, in_fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            like = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device="meta")
        except Exception as error:  # a damaged header can make numpy's parser raise almost anything
            raise LatentsError(f"its header cannot be used: {str(error).splitlines()[0]}.") from error
        if in_fortran_order and like.ndim > 1:
            raise LatentsError("it is in Fortran's order; save np.ascontiguousarray of it.")
        seen = version(file)
        if file.tell() + like.nbytes != seen.size:
            raise LatentsError(f"it has {seen.size} bytes, and its header describes {file.tell() + like.nbytes}.")
        return TensorFile({"": StoredTensor(like, (path, file.tell()))}, {}, {path: seen})


def _find(listed: TensorFile, key: str | None, form: str) -> StoredTensor:
    """Return the tensor of latents: of a name, or the one among all that could be."""
    # ai-toolkit leaves the time out for models of images.
    dimensions = (3, 4, 5) if form == "ai-toolkit" else (4, 5)
    able = [
        name
        for name, stored in listed.tensors.items()
        if stored.like.dtype in DTYPE_NAMES and stored.like.ndim in dimensions and stored.has_values()
    ]
    key = usual_name(able) if key is None else key
    if key is None or key not in able:
        shown = ", ".join(f"{name or 'a tensor'} {tuple(s.like.shape)}" for name, s in list(listed.tensors.items())[:4])
        raise LatentsError(
            f"it holds {len(listed.tensors)} tensors ({shown}), and which are latents does not show; save one of"
            " (1, z, t, h, w) or (z, t, h, w) in a floating-point dtype."
        )
    return listed.tensors[key]


def _clip_shape(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Return the shape as (1, z, t, h, w)."""
    if len(shape) == 3:
        shape = (1, shape[0], 1, *shape[1:])
    elif len(shape) == 4:
        # ComfyUI's latents always have a batch, and those of image models no time.
        shape = (shape[0], shape[1], 1, *shape[2:]) if name == "comfyui" else (1, *shape)
    if shape[0] != 1:
        raise LatentsError(f"it holds {shape[0]} clips, {shape}; save one.")
    if 0 in shape:
        raise LatentsError(f"its latents are empty, {shape}.")
    return shape
