"""The formats of a cache: where the file of a part is, and what writes it.

A format is a class here and a name in `CACHE_FORMATS` of plan.py, which needs no torch.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from wan_vae.config import VAEConfig
from wan_vae.dataset.ai_toolkit import (
    ToolkitWriter,
    crop_facts,
    is_of_images,
    to_toolkit_bucket,
    toolkit_bucket,
    toolkit_path,
    video_facts,
)
from wan_vae.dataset.parts import choose_bucket, to_bucket
from wan_vae.dataset.plan import CacheOptions, Job
from wan_vae.errors import LatentsError
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

    def bucket(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that pictures of width x height are brought to, with the option `resolution`."""
        assert self._options.resolution is not None
        return choose_bucket(width, height, self._options.resolution, upscale=self._options.upscale)

    def to_bucket(self, picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Bring a picture (height, width, c) to the size of its bucket."""
        return to_bucket(picture, size)

    @abstractmethod
    def path(self, job: Job, begin: Begin) -> Path:
        """Return the file of a part, relative to the cache's folder.

        Raises:
            LatentsError: The format has no place for such a part.
        """

    @abstractmethod
    def writer(self, job: Job, path: Path, begin: Begin) -> LatentsWriter:
        """Return what writes the normalized latents of a part to a path."""


class OwnOutput(CacheOutput):
    """Our files, which `decode` reads: the clip's whole name, and the part's frames."""

    def path(self, job: Job, begin: Begin) -> Path:
        place = Path(job.source.name)
        is_part = begin.parts > 1 or job.source.start is not None or self._options.extract is not None
        position = f"_{begin.start:05d}-{begin.info.frames:03d}" if is_part and not begin.is_image else ""
        # The clip's own extension stays, since a.mp4 and a.png may lie side by side.
        return place.with_name(f"{place.name}{position}.safetensors")

    def writer(self, job: Job, path: Path, begin: Begin) -> LatentsWriter:
        return LatentsWriter(path)


class TensorOutput(OwnOutput):
    """Bare tensors, named as our files."""

    def writer(self, job: Job, path: Path, begin: Begin) -> LatentsWriter:
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

    def writer(self, job: Job, path: Path, begin: Begin) -> LatentsWriter:
        original = begin.original if begin.is_image else None
        i2v = self._options.i2v
        return ForeignWriter(path, "musubi", self._config, is_image=begin.is_image, original=original, i2v=i2v)


def _check_whole(job: Job, trainer: str) -> None:
    if job.source.start is not None:
        raise LatentsError(
            f"{job.source.name} has a `start` in the list; {trainer} has one file a clip: cut the clip, or leave"
            " `start` out."
        )


class AiToolkitOutput(CacheOutput):
    """Caches of ai-toolkit."""

    def __init__(self, options: CacheOptions, config: VAEConfig) -> None:
        super().__init__(options, config)
        extract = options.extract
        self._num_frames = None if extract is None or extract.extraction == "full" else extract.target_frames[0]
        self._architecture = options.architecture or ("wan22_5b" if config.spatial_compression == 16 else "wan21")
        self._of_images = is_of_images(self._architecture)
        # Twice the side of a latent pixel, since the transformers join 2x2 of these; and twice that, as it has it.
        self._step = (4 if self._of_images else 2) * config.spatial_compression

    def bucket(self, width: int, height: int) -> tuple[int, int]:
        assert self._options.resolution is not None
        return toolkit_bucket(width, height, self._options.resolution[0], self._step)

    def to_bucket(self, picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        return to_toolkit_bucket(picture, size)

    def path(self, job: Job, begin: Begin) -> Path:
        _check_whole(job, "ai-toolkit")
        return toolkit_path(Path(job.source.name), self._facts(job.source.name, begin))

    def writer(self, job: Job, path: Path, begin: Begin) -> LatentsWriter:
        frames = None if begin.is_image else self._num_frames or begin.info.frames
        return ToolkitWriter(path, self._facts(job.source.name, begin), frames, timeless=self._of_images)

    def _facts(self, name: str, begin: Begin) -> dict[str, Any]:
        if not begin.is_image and self._of_images:
            raise LatentsError(f"{name} is a video, and {self._architecture} is a model of images.")
        if not begin.is_image and self._options.extract is None:
            raise LatentsError(
                f"{name} is a video: give --target-frames with the `num_frames` of ai-toolkit's dataset, or"
                " --extraction full for `auto_frame_count`."
            )
        facts = crop_facts(Path(name).name, begin.original, (begin.info.width, begin.info.height), self._architecture)
        fps = self._options.fps
        return facts if begin.is_image else facts | video_facts(self._num_frames, None if fps is None else float(fps))


class SimpleTunerOutput(CacheOutput):
    """Caches of SimpleTuner (helpers/caching/vae.py), named by a hash of the clip's stem.

    A file is a tensor (z, t, h, w) of torch.save, normalized means; its sides are even.
    """

    def path(self, job: Job, begin: Begin) -> Path:
        _check_whole(job, "SimpleTuner")
        step = 2 * self._config.spatial_compression
        width, height = begin.info.width, begin.info.height
        if width % step or height % step:
            fit = "x".join(str(max(step, side // step * step)) for side in (width, height))
            raise LatentsError(
                f"{job.source.name} has {width}x{height} pixels; SimpleTuner trains on sides that are multiples of"
                f" {step}: give --size {fit}, or the size of its metadata."
            )
        place = Path(job.source.name)
        return place.with_name(f"{hashlib.sha256(place.stem.encode()).hexdigest()}.pt")

    def writer(self, job: Job, path: Path, begin: Begin) -> LatentsWriter:
        return ForeignWriter(path, "simpletuner", self._config)


CACHE_OUTPUTS: dict[str, type[CacheOutput]] = {
    "wan-vae": OwnOutput,
    "musubi": MusubiOutput,
    "tensor": TensorOutput,
    "ai-toolkit": AiToolkitOutput,
    "simpletuner": SimpleTunerOutput,
}
"""By the names of `CACHE_FORMATS`."""
