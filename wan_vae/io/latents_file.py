"""Reading and writing latents files in chunks; `latents_info.py` says what is in them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from wan_vae.arguments import check_count
from wan_vae.errors import LatentsError, UserError
from wan_vae.io.atomic_output import check_output, written_beside
from wan_vae.io.latents_info import FORMAT, LatentsInfo
from wan_vae.io.safetensors_file import (
    DTYPES,
    TensorInFile,
    Version,
    read_exactly,
    read_header,
    safetensors_header,
    version,
)

DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class LatentsWriter:
    """Writes a latents file in chunks. A context manager.

    The file appears under its name when the context is left after `finish`; after an exception nothing is left of it.
    Leaving without `finish` writes nothing; for a path, that raises a LatentsError. Memory does not grow with the clip:
    until `finish`, chunks are kept in a nameless temporary file, since channels come before time in the tensor, so its
    layout depends on the length.
    """

    def __init__(self, target: str | os.PathLike[str] | BinaryIO, *, overwrite: bool = True) -> None:
        """Write to a path, or to a binary file object from its current position.

        Without `overwrite`, a file that appears under the path is kept; the latents get another name, and leaving the
        context raises a UserError that says which.
        """
        self._overwrite = overwrite
        self._target = Path(target) if isinstance(target, str | os.PathLike) else target
        self._name = str(self._target) if isinstance(self._target, Path) else "the file object"
        self._frames = 0
        self._first: Tensor | None = None
        self._tensors: tuple[str, ...] = ("latents",)  # which follow one another in the channels of `_first`
        self._clips = 1  # whose latents follow one another in time
        self._finished = False

    def __enter__(self) -> "LatentsWriter":
        with self._reported(), ExitStack() as stack:
            self._temporary = None
            if isinstance(self._target, Path):
                self._temporary = stack.enter_context(written_beside(self._target, overwrite=self._overwrite))
            folder = self._temporary.parent if self._temporary else None
            self._spool = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._temporary is not None and not self._finished:
            with self._stack:
                raise self._refusal("finish was not called; call it with a LatentsInfo after the last chunk.")
        with self._reported():
            self._stack.__exit__(kind, error, traceback)

    def write(self, latents: Tensor) -> None:
        """Append normalized latents (1, z, n, h, w); all chunks have one dtype, z, h and w.

        Raises:
            LatentsError: The shape or dtype cannot be stored, a value is NaN or infinite, or the disk is full.
        """
        shape = tuple(latents.shape)
        if latents.ndim != 5 or shape[0] != 1:
            given = f"a batch of {shape[0]} clips" if latents.ndim == 5 else f"of shape {shape}"
            raise self._refusal(f"the latents are {given}; a file holds one clip, (1, z, n, h, w).")
        if latents.dtype not in DTYPE_NAMES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPE_NAMES)
            raise self._refusal(f"the latents are {latents.dtype}; convert them to one of {known}.")
        if 0 in shape:
            raise self._refusal(f"the latents are of shape {shape}, which holds none; leave empty chunks out.")
        frames = latents[0].detach().transpose(0, 1).contiguous().cpu()
        if not torch.isfinite(frames).all():
            raise self._refusal(
                f"the network gave NaN or infinite latents from latent frame {self._frames} on in {frames.dtype}; "
                "compute in a wider dtype."
            )
        first = self._first = frames[:1] if self._first is None else self._first
        if (frames.shape[1:], frames.dtype) != (first.shape[1:], first.dtype):
            raise self._refusal(
                f"latent frames of {tuple(frames.shape[1:])} in {frames.dtype} follow those of "
                f"{tuple(first.shape[1:])} in {first.dtype}; all must be alike."
            )
        with self._reported():
            self._spool.write(frames.view(torch.uint8).numpy().data)
        self._frames += frames.shape[0]

    def write_posterior(self, latents: Tensor, logvar: Tensor) -> None:
        """Append normalized latents and the logarithm of their variance, both (1, z, n, h, w), of one dtype.

        Raises:
            LatentsError: As `write`; or the two are not alike.
        """
        if (latents.shape, latents.dtype) != (logvar.shape, logvar.dtype):
            raise self._refusal(
                f"the latents are {tuple(latents.shape)} in {latents.dtype}, but their log-variance is"
                f" {tuple(logvar.shape)} in {logvar.dtype}."
            )
        self._tensors = ("latents", "logvar")
        LatentsWriter.write(self, torch.cat([latents, logvar], dim=1))  # the file has one after the other, too

    def finish(self, info: LatentsInfo) -> tuple[int, ...]:
        """Write the file and return the shape of its tensor, (1, z, t, h, w).

        Raises:
            LatentsError: There are no latents, `info` belongs to others, or the disk is full.
        """
        if self._first is None:
            raise self._refusal("there were no latents; write at least one chunk.")
        _, channels, height, width = self._first.shape
        shape = (1, channels // len(self._tensors), self._frames // self._clips, height, width)
        try:
            info.check_shape(shape)
        except LatentsError as error:
            raise self._refusal(str(error)) from error
        opened: Any = nullcontext(self._target) if self._temporary is None else self._temporary.open("wb")
        with self._reported(), opened as file:
            self._write_file(file, info, shape, self._first.dtype)
        self._finished = True
        return shape

    def _write_file(self, file: BinaryIO, info: LatentsInfo, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        tensors = dict.fromkeys(self._tensors, (DTYPE_NAMES[dtype], shape))
        file.write(safetensors_header(tensors, info.to_metadata()))
        for plane in self._planes():
            file.write(plane)

    def _planes(self, first: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the values (h, w) of every channel and latent frame, in the order of the tensor (1, z, t, h, w).

        `first` and `stop` are the first latent frame and the one after the last; None for the end.
        """
        assert self._first is not None
        channels, frame_bytes = self._first.shape[1], self._first.nbytes
        plane_bytes = frame_bytes // channels
        for channel in range(channels):
            for frame in range(self._frames)[first:stop]:
                self._spool.seek(frame * frame_bytes + channel * plane_bytes)
                yield self._spool.read(plane_bytes)

    def _refusal(self, reason: str) -> LatentsError:
        return LatentsError(f"{self._name} was not written: {reason}")

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LatentsError(
                f"{self._name} cannot be written ({error.strerror}); make room or name another."
            ) from error


class LatentsFile:
    """A latents file opened for reading. The tensor stays on disk.

    Attributes:
        name: What messages call it.
        info: Properties of the clip and of the model.
        shape: Shape of the tensor, (1, z, t, h, w).
        dtype: safetensors' name of its dtype, such as "F32".
        has_logvar: Whether the file also has the logarithm of the variance.

    Raises:
        LatentsError: The file is missing, damaged, or not a latents file. It says `name`, by default the path.
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str | None = None) -> None:
        self._path = Path(path)
        self.name = name or str(path)
        header = _read_latents_header(self._path)
        if header is None:
            raise LatentsError(
                f"{self.name} is no latents file of this package, as `wan-vae encode` writes them; those of other"
                " programs are read by wan_vae.interchange.read_latents."
            )
        tensors, metadata, self._version = header
        try:
            self.info = LatentsInfo.from_metadata(metadata)
            if "latents" not in tensors:
                raise LatentsError("it has no tensor 'latents'.")
            self.dtype, self.shape, self._start = tensors["latents"]
            if self.dtype not in DTYPE_NAMES.values():
                raise LatentsError(f"its latents are {self.dtype}, not one of {', '.join(DTYPE_NAMES.values())}.")
            self.info.check_shape(self.shape)
            self._logvar = tensors.get("logvar")
            self.has_logvar = self._logvar is not None
            if self._logvar is not None and self._logvar[:2] != (self.dtype, self.shape):
                raise LatentsError(
                    f"its latents are {self.shape} in {self.dtype}, but its logvar is {self._logvar[1]} in"
                    f" {self._logvar[0]}."
                )
        except UserError as error:
            raise LatentsError(f"{self.name} cannot be used: {error}") from error

    def chunks(self, count: int) -> Iterator[Tensor]:
        """Yield normalized latents (1, z, n, h, w); n is `count`, or less for the last chunk.

        Raises:
            UserError: `count` is no whole number above 0.
            LatentsError: A value is NaN or infinite, or the file has changed since it was opened.
        """
        count = check_count("count", count)
        return read_chunks(
            self._path, self.name, TensorInFile(self.dtype, self.shape, self._start), self._version, count
        )

    def logvar_chunks(self, count: int) -> Iterator[Tensor]:
        """Yield the logarithm of the normalized latents' variance, in chunks as those of `chunks`.

        Raises:
            LatentsError: The file has none; otherwise as `chunks`.
        """
        if self._logvar is None:
            raise LatentsError(f"{self.name} has no log-variance; encode with --posterior (in Python, posterior=True).")
        return read_chunks(self._path, self.name, self._logvar, self._version, check_count("count", count))


def read_chunks(path: Path, name: str, tensor: TensorInFile, seen: Version, count: int) -> Iterator[Tensor]:
    """Yield latents (1, z, n, h, w) that a file keeps as one contiguous tensor (1, z, t, h, w); n is at most `count`.

    Args:
        name: What messages call the file.
        seen: The file's version when the tensor was found in it.

    Raises:
        LatentsError: A value is NaN or infinite, or the file has changed since.
    """
    with _open(path, name) as file:
        _, channels, frames, height, width = tensor.shape
        for start in range(0, frames, count):
            chunk = torch.empty(
                (channels, min(count, frames - start), height, width), dtype=DTYPES[tensor.kind], device="cpu"
            )
            plane_bytes = chunk[0, 0].nbytes
            try:
                for channel in range(channels):
                    read_exactly(file, tensor.start + (channel * frames + start) * plane_bytes, chunk[channel])
                changed = version(file) != seen
            except (OSError, ValueError):
                changed = True
            if changed:
                raise LatentsError(f"{name} was changed while it was read; start again.")
            check_finite(chunk, name, start)
            yield chunk[None]


def check_finite(latents: Tensor, name: str, start: int) -> None:
    """Raise a LatentsError if latents, which begin at latent frame `start` of a file, are not all finite."""
    if not torch.isfinite(latents).all():
        raise LatentsError(f"{name} holds NaN or infinite values from latent frame {start} on.")


def latents_metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of a latents file, None for any other file; a LatentsError if there is no such file."""
    header = _read_latents_header(path)
    return None if header is None else header[1]


def _read_latents_header(path: Path) -> tuple[dict[str, TensorInFile], dict[str, str], Version] | None:
    with _open(path, str(path)) as file:
        try:
            tensors, metadata = read_header(file)
        except ValueError:
            return None
        return (tensors, metadata, version(file)) if metadata.get("format") == FORMAT else None


def _open(path: Path, name: str) -> BinaryIO:
    try:
        if not path.is_file():
            raise LatentsError(f"{name} is not a file.")
        return path.open("rb")
    except OSError as error:
        raise LatentsError(f"{name} cannot be read: {error.strerror}.") from error


def load_latents(source: str | os.PathLike[str] | BinaryIO) -> tuple[Tensor, LatentsInfo]:
    """Read a latents file from a path, or from a binary file object at its current position.

    Returns:
        The normalized latents, (1, z, t, h, w) in the dtype of the file, on the CPU; and their properties.

    Raises:
        LatentsError: The file is missing, damaged, not a latents file, or holds NaN or infinite values.
    """
    with ExitStack() as stack:
        name = None
        if not isinstance(source, str | os.PathLike):
            copy = stack.enter_context(tempfile.NamedTemporaryFile())
            shutil.copyfileobj(source, copy)
            copy.flush()
            source, name = copy.name, "the file object"
        file = LatentsFile(source, name=name)
        (latents,) = file.chunks(file.shape[2])
    return latents, file.info


def save_latents(
    target: str | os.PathLike[str] | BinaryIO, latents: Tensor, info: LatentsInfo, *, overwrite: bool = False
) -> None:
    """Write normalized latents (1, z, t, h, w) to a latents file.

    Args:
        target: A path, which has the file only once it is complete; or a binary file object.
        latents: float64, float32, bfloat16 or float16, on any device.
        info: Properties of the clip and of the model.
        overwrite: Replace an existing file.

    Raises:
        UserError: The path is taken, the latents cannot be stored or do not fit `info`, or the disk is full.
    """
    if isinstance(target, str | os.PathLike):
        check_output(target, overwrite=overwrite, must_be_utf8=True)
    with LatentsWriter(target, overwrite=overwrite) as writer:
        writer.write(latents)
        writer.finish(info)
