"""The latents file: final latents with all that `decode` needs to give the clip back as it was.

A safetensors file with one tensor, `latents` (1, z, t, h, w), final (normalized), and these strings as metadata:

- `format` is "wan_vae.latents", `version` "1".
- `frames`, `width`, `height`: the clip's true size, before it was padded to fit the network.
- `fps`, `pixel_aspect`: fractions, such as "30000/1001".
- `color`: how the source stored its colors, as JSON (see `wan_vae.io.Color`).
- `config`: the architecture, as JSON (see `wan_vae.config.VAEConfig`).
- `checkpoint`: the digest of the weights (see `wan_vae.checkpoints.Checkpoint.digest`).
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import LatentsError, UserError
from wan_vae.io import Color
from wan_vae.io.atomic_output import written_beside

FORMAT = "wan_vae.latents"
VERSION = "1"
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class LatentsInfo:
    """What a latents file says of the clip and of the model that encoded it (see the module's docstring)."""

    frames: int
    width: int
    height: int
    fps: Fraction
    pixel_aspect: Fraction
    color: Color
    config: VAEConfig
    checkpoint: str

    def to_metadata(self) -> dict[str, str]:
        """Return the strings that the file keeps."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "frames": str(self.frames),
            "width": str(self.width),
            "height": str(self.height),
            "fps": str(self.fps),
            "pixel_aspect": str(self.pixel_aspect),
            "color": json.dumps(asdict(self.color)),
            "config": json.dumps(self.config.to_dict()),
            "checkpoint": self.checkpoint,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "LatentsInfo":
        """Read those strings.

        Raises:
            LatentsError: One is missing or makes no sense, or the file is of another version.
        """
        if metadata.get("version") != VERSION:
            raise LatentsError(f"it is of version {metadata.get('version')}; this program reads version {VERSION}.")
        try:
            info = cls(
                frames=int(metadata["frames"]),
                width=int(metadata["width"]),
                height=int(metadata["height"]),
                fps=Fraction(metadata["fps"]),
                pixel_aspect=Fraction(metadata["pixel_aspect"]),
                color=Color(**json.loads(metadata["color"])),
                config=VAEConfig.from_dict(json.loads(metadata["config"]), origin="its config"),
                checkpoint=metadata["checkpoint"],
            )
        except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise LatentsError(f"its metadata is damaged: {error}.") from error
        counts, ratios = (info.frames, info.width, info.height), (info.fps, info.pixel_aspect)
        if min(counts) < 1 or not all(Fraction(1, 2**16) <= ratio <= 2**16 for ratio in ratios):
            raise LatentsError("its metadata is damaged: a size or rate is not possible.")
        return info


class LatentsWriter:
    """Writes a latents file in memory that does not grow with the clip; it appears under its name only when finished.

    A context manager. What is written before `finish` is kept in a nameless file in the same folder, because the
    tensor's layout, channels before time, is known only once all of time is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._frames = 0
        self._first: Tensor | None = None

    def __enter__(self) -> "LatentsWriter":
        self._beside = self._stack.enter_context(written_beside(self._path))
        self._spool = self._stack.enter_context(tempfile.TemporaryFile(dir=self._path.parent))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def write(self, latents: Tensor) -> None:
        """Append final latents (1, z, n, h, w), all chunks of one dtype and size.

        Raises:
            LatentsError: A value is NaN or infinite, or there is no room.
        """
        frames = latents[0].transpose(0, 1).contiguous().cpu()
        if not torch.isfinite(frames).all():
            raise LatentsError(
                f"{self._path} was not written: the network gave NaN or infinite latents from latent frame"
                f" {self._frames} on in {frames.dtype}; compute in a wider dtype."
            )
        self._first = frames[:1] if self._first is None else self._first
        assert (frames.shape[1:], frames.dtype) == (self._first.shape[1:], self._first.dtype)
        with self._reported():
            self._spool.write(frames.view(torch.uint8).numpy().data)
        self._frames += frames.shape[0]

    def finish(self, info: LatentsInfo) -> tuple[int, ...]:
        """Write the file and return the shape of its tensor, (1, z, t, h, w).

        Raises:
            LatentsError: There is no room.
        """
        assert self._first is not None, "nothing was written"
        _, channels, height, width = self._first.shape
        shape = (1, channels, self._frames, height, width)
        frame_bytes = self._first.nbytes
        plane_bytes = frame_bytes // channels
        tensor = {
            "dtype": DTYPE_NAMES[self._first.dtype],
            "shape": shape,
            "data_offsets": [0, frame_bytes * self._frames],
        }
        header = json.dumps({"__metadata__": info.to_metadata(), "latents": tensor}).encode()
        header += b" " * (-len(header) % 8)
        with self._reported(), self._beside.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for channel in range(channels):
                for frame in range(self._frames):
                    self._spool.seek(frame * frame_bytes + channel * plane_bytes)
                    file.write(self._spool.read(plane_bytes))
        return shape

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LatentsError(
                f"{self._path} cannot be written ({error.strerror}); make room or name another."
            ) from error


class LatentsFile:
    """A latents file opened for reading; its tensor stays on disk.

    Attributes:
        info: What it says of the clip and of the model.
        shape: (1, z, t, h, w).
        dtype: Of the tensor, as safetensors names it.

    Raises:
        LatentsError: It is missing, damaged, or no latents file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = latents_metadata(path)
        if metadata is None:
            raise LatentsError(f"{path} is no latents file; `wan-vae encode` writes them.")
        try:
            self.info = LatentsInfo.from_metadata(metadata)
        except UserError as error:
            raise LatentsError(f"{path} cannot be used: {error}") from error
        with safe_open(path, framework="pt") as file:
            if "latents" not in file.keys():  # noqa: SIM118
                raise LatentsError(f"{path} cannot be used: it has no tensor 'latents'.")
            tensor = file.get_slice("latents")
            self.shape = tuple(tensor.get_shape())
            self.dtype = str(tensor.get_dtype())
        self._check_shape()

    def chunks(self, count: int) -> Iterator[Tensor]:
        """Yield final latents (1, z, n, h, w), n being `count` for all but the last.

        Raises:
            LatentsError: A value is NaN or infinite.
        """
        with safe_open(self.path, framework="pt") as file:
            tensor = file.get_slice("latents")
            for start in range(0, self.shape[2], count):
                chunk = tensor[:, :, start : start + count]
                if not torch.isfinite(chunk).all():
                    raise LatentsError(f"{self.path} holds NaN or infinite values from latent frame {start} on.")
                yield chunk

    def _check_shape(self) -> None:
        config, info = self.info.config, self.info
        expected = (
            1,
            config.latent_channels,
            1 + -(-(info.frames - 1) // config.temporal_compression),
            -(-info.height // config.spatial_compression),
            -(-info.width // config.spatial_compression),
        )
        if self.shape != expected:
            raise LatentsError(
                f"{self.path} cannot be used: its latents are {self.shape}, where {info.frames} frames of"
                f" {info.width}x{info.height} have {expected}."
            )


def latents_metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of a latents file, or None if `path` is something else.

    Raises:
        LatentsError: There is no such file.
    """
    if not path.is_file():
        raise LatentsError(f"{path} is not a file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError:
        return None
    return metadata if metadata.get("format") == FORMAT else None
