"""The formats of a cache: where the file of a part is, and what writes it.

A format is a class here and a name in `CACHE_FORMATS` of plan.py, which needs no torch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from wan_vae.config import VAEConfig
from wan_vae.dataset.plan import CacheOptions, Job
from wan_vae.interchange.formats import Values, check_musubi, musubi_path
from wan_vae.interchange.writer import ForeignWriter
from wan_vae.io import ClipInfo
from wan_vae.io.latents_file import LatentsWriter


@dataclass(frozen=True)
class Begin:
    """The start of a part, whose frames follow.

    Attributes:
        number, parts: Number of the part, from 0, and how many the clip has.
        start: Number of its first frame in the clip, at the rate of the options.
        info: Its properties, as it is encoded.
        original: Width and height of the clip before it was brought to its bucket.
    """

    number: int
    parts: int
    start: int
    info: ClipInfo
    original: tuple[int, int]

    @property
    def is_image(self) -> bool:
        """Whether the clip is an image."""
        return self.info.container == "image"


class CacheOutput(ABC):
    """A format of a cache: names its files and writes them."""

    def __init__(self, options: CacheOptions, config: VAEConfig) -> None:
        """Raise a LatentsError for a model that the format has no place for."""
        self._options, self._config = options, config

    @abstractmethod
    def path(self, job: Job, begin: Begin) -> Path:
        """Return the file of a part, relative to the cache's folder.

        Raises:
            LatentsError: The format has no place for such a part.
        """

    @abstractmethod
    def writer(self, path: Path, begin: Begin) -> LatentsWriter:
        """Return what writes the normalized latents of a part to a path."""


class OwnOutput(CacheOutput):
    """Our files, which `decode` reads: the clip's whole name, and the part's frames."""

    def path(self, job: Job, begin: Begin) -> Path:
        place = Path(job.source.name)
        is_part = begin.parts > 1 or job.source.start is not None or self._options.extract is not None
        position = f"_{begin.start:05d}-{begin.info.frames:03d}" if is_part and not begin.is_image else ""
        # The clip's own ending stays, since a.mp4 and a.png may lie side by side.
        return place.with_name(f"{place.name}{position}.safetensors")

    def writer(self, path: Path, begin: Begin) -> LatentsWriter:
        return LatentsWriter(path)


class TensorOutput(OwnOutput):
    """Bare tensors, named as our files."""

    def writer(self, path: Path, begin: Begin) -> LatentsWriter:
        return ForeignWriter(path, "tensor", self._config, values=cast("Values | None", self._options.values))


class MusubiOutput(CacheOutput):
    """Caches of musubi-tuner."""

    def __init__(self, options: CacheOptions, config: VAEConfig) -> None:
        super().__init__(options, config)
        check_musubi(config.latent_channels)

    def path(self, job: Job, begin: Begin) -> Path:
        place = Path(job.source.name)
        original = begin.original if begin.is_image else None
        return musubi_path(Path(), place, begin.info, begin.start, original)  # it looks in one folder

    def writer(self, path: Path, begin: Begin) -> LatentsWriter:
        original = begin.original if begin.is_image else None
        i2v = self._options.i2v
        return ForeignWriter(path, "musubi", self._config, is_image=begin.is_image, original=original, i2v=i2v)


CACHE_OUTPUTS: dict[str, type[CacheOutput]] = {"wan-vae": OwnOutput, "musubi": MusubiOutput, "tensor": TensorOutput}
"""By the names of `CACHE_FORMATS`."""
