"""Latents written for other programs, in chunks and as a whole."""

import os
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.interchange.formats import (
    COMFYUI_TENSOR,
    COMFYUI_VERSION,
    FORMATS,
    MUSUBI_MASK,
    OURS,
    VALUES_KEY,
    Values,
    check_musubi,
    check_values,
    clip_of,
    musubi_metadata,
    output_format,
)
from wan_vae.io.atomic_output import check_output
from wan_vae.io.latents_file import DTYPE_NAMES, LatentsWriter
from wan_vae.io.latents_info import LatentsInfo
from wan_vae.io.safetensors_file import safetensors_header
from wan_vae.posterior import LatentStatistics
from wan_vae.validation import check_channels


class ForeignWriter(LatentsWriter):
    """Writes latents in a format of another program; otherwise as `LatentsWriter`.

    Files of torch are put together in memory when they are finished.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        name: str,
        config: VAEConfig,
        *,
        values: Values | None = None,
        is_image: bool = False,
        original: tuple[int, int] | None = None,
        i2v: bool = False,
        overwrite: bool = True,
    ) -> None:
        """Write to a path.

        Args:
            target: The file.
            name: One of `FORMATS`.
            config: The architecture whose statistics relate raw to normalized latents.
            values: What a bare tensor holds; None for normalized latents.
            is_image: The source is an image; musubi-tuner tells its cache from that of a video of one frame.
            original: Width and height of an image before it was brought to its bucket, which musubi-tuner's files name.
            i2v: What is written after the latents of the clip are as many of its first frame and zeros, on which
                musubi-tuner trains models of images to video.
            overwrite: As in `LatentsWriter`.

        Raises:
            LatentsError: The format has no place for such latents.
        """
        super().__init__(target, overwrite=overwrite)
        if name == "musubi":
            check_musubi(config.latent_channels)
        self._name_of_format, self._form = name, FORMATS[name]
        self._config, self._values = config, self._form.values or values or "normalized"
        self._is_image, self._original = is_image, original
        self._clips = 2 if i2v else 1
        self._suffix = Path(target).suffix.lower()

    def write(self, latents: Tensor) -> None:
        """Append normalized latents (1, z, n, h, w), as `LatentsWriter.write`, converted as the format asks."""
        check_channels(latents, self._config)
        dtype = self._form.dtype
        if self._values == "raw":
            latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
            latents = LatentStatistics.of(self._config, latents.dtype, latents.device).denormalized(latents)
        if dtype is None and self._suffix == ".npy" and latents.dtype == torch.bfloat16:
            dtype = torch.float32  # numpy has no bfloat16
        super().write(latents.to(dtype))

    def _write_file(self, file: BinaryIO, info: LatentsInfo, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        stored = shape if self._form.batch else shape[1:]
        if self._suffix in (".pt", ".pth"):
            tensor = torch.frombuffer(bytearray().join(self._planes()), dtype=dtype).view(stored)
            torch.save(tensor, file)
            return
        kind = DTYPE_NAMES[dtype]
        if self._suffix == ".npy":
            description = np.lib.format.dtype_to_descr(torch.empty(0, dtype=dtype, device="cpu").numpy().dtype)
            np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": stored})
        elif self._name_of_format == "comfyui":
            tensors = {COMFYUI_TENSOR: (kind, stored), COMFYUI_VERSION: ("F32", (0,))}
            file.write(safetensors_header(tensors, {"prompt": ""}))
        elif self._name_of_format == "musubi":
            _, channels, frames, *_ = shape
            size = "x".join(str(side) for side in shape[2:]) + f"_{str(dtype).removeprefix('torch.')}"
            tensors = {f"latents_{size}": (kind, stored)}
            if self._clips > 1:
                tensors[f"latents_image_{size}"] = (kind, (MUSUBI_MASK + channels, *stored[1:]))
            width, height = self._original or (info.width, info.height)
            file.write(safetensors_header(tensors, musubi_metadata(width, height, info.frames, image=self._is_image)))
            for plane in self._planes(0, frames):
                file.write(plane)
            if self._clips > 1:
                given, made = (torch.full(shape[3:], value, dtype=dtype).view(torch.uint8) for value in (1, 0))
                for mask in (given, *[made] * (frames - 1)) * MUSUBI_MASK:
                    file.write(mask.numpy().data)
                for plane in self._planes(frames):
                    file.write(plane)
            return
        else:
            file.write(safetensors_header({"latents": (kind, stored)}, {VALUES_KEY: self._values}))
        for plane in self._planes():
            file.write(plane)


def write_latents(
    path: str | os.PathLike[str],
    latents: Tensor,
    config: VAEConfig,
    *,
    format: str | None = None,  # noqa: A002  # as the command line calls it
    values: Values | None = None,
    overwrite: bool = False,
) -> None:
    """Write normalized latents (1, z, t, h, w) in a format of another program.

    Args:
        path: The file.
        latents: float64, float32, bfloat16 or float16, on any device.
        config: The architecture of the model that encoded them, `vae.config`.
        format: One of "comfyui", "fastvideo" and "tensor"; None for that of the extension. Caches of musubi-tuner,
            whose names tell of the clip, are written by `encode_file`, our own files by `save_latents`.
        values: Whether a bare tensor is to hold "raw" or "normalized" latents; None for normalized.
        overwrite: Replace an existing file.

    Raises:
        UserError: The path is taken, the latents cannot be stored, or the disk is full.
    """
    check_values(values)
    name = output_format(Path(path), format, values)
    if name not in FORMATS or name == "musubi":
        instead = "save_latents writes it" if name == OURS else "encode_file writes it, and names the file by the clip"
        raise UserError(f"format is {name!r}; {instead}.")
    check_output(path, overwrite=overwrite, must_be_utf8=True)
    with ForeignWriter(path, name, config, values=values, overwrite=overwrite) as writer:
        writer.write(latents)
        writer.finish(clip_of(tuple(latents.shape), config, Fraction(1)))
