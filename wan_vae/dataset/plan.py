"""What a run over clips is to do: its options, and which clips are done already. Nothing here needs torch."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from wan_vae.arguments import check_clip_options, check_count, check_type
from wan_vae.config import preset_names, read_preset
from wan_vae.dataset.ai_toolkit import is_of_images
from wan_vae.dataset.manifest import Key, Manifest
from wan_vae.dataset.parts import STEP, Extract
from wan_vae.dataset.sources import Source
from wan_vae.dataset.storage import check_store
from wan_vae.errors import UserError
from wan_vae.io.timing import exact_rate

# In the cache's folder: digests of checkpoints by what tells that their files are the same.
_STAMPS = "checkpoints.json"
_VERSION = 1  # of what an output holds; raise it where the same options give other outputs


@dataclass(frozen=True)
class CacheOptions:
    """What the outputs of a cache depend on, beside clips and weights.

    Attributes:
        format: "wan-vae", "musubi" or "tensor" (safetensors), as of `encode_file`; "ai-toolkit" or "simpletuner".
        values: What "tensor" holds, "raw" or "normalized".
        size: Width and height that clips are scaled to; of one that is None, the clip's shape decides. None keeps them.
        fit: "stretch", "crop" or "pad" where the size has another shape, as of `encode_file`.
        fps: Rate that clips are resampled to; None keeps theirs.
        frames: First frame and the one after the last, as of `encode_file`, of clips whose list does not say.
        length: Number of frames to take, from the first one on.
        source_fps: For the format "musubi": the frame rate that every video is taken to have. Frames are left out to
            have 16 a second, the same ones as by musubi-tuner's option of this name. None keeps all.
        resolution: Width and height whose area the buckets have: each clip is scaled and cut to the bucket of its
            aspect. None for no buckets.
        buckets: Whether there are buckets; else each clip is scaled and cut to `resolution` itself.
        upscale: Whether clips smaller than their bucket are enlarged.
        extract: How clips are cut in parts; None for whole clips.
        posterior: Whether files of the format "wan-vae" hold the log-variance, too.
        i2v: Whether the files of "musubi" also hold what its training of image-to-video models takes: the latents of
            the first frame followed by zeros, and a mask of it.
        dtype: What the network of a name or path computes in, as of `WanVAE.from_pretrained`; "auto" is bfloat16 on a
            GPU where that is fast, and float32 elsewhere. With another, clips are encoded again. A model has its own,
            and a `load` of your own decides itself.
        architecture: The model that is trained, by the name that "ai-toolkit" has for it; None for the usual one.
        store: URL of the folder that outputs go to, of any storage that fsspec knows; None for the cache's folder.
    """

    format: str = "wan-vae"
    values: str | None = None
    size: tuple[int | None, int | None] | None = None
    fit: Literal["stretch", "crop", "pad"] | None = None
    fps: Fraction | float | None = None
    frames: tuple[int | None, int | None] = (None, None)
    length: int | None = None
    source_fps: float | None = None
    resolution: tuple[int, int] | None = None
    buckets: bool = True
    upscale: bool = True
    extract: Extract | None = None
    posterior: bool = False
    i2v: bool = False
    dtype: str = "auto"
    architecture: str | None = None
    store: str | None = None

    def __post_init__(self) -> None:
        if self.format not in CACHE_FORMATS:
            raise UserError(f"format is {self.format!r}; a cache is of {', '.join(CACHE_FORMATS)}.")
        if self.values is not None and (self.format != "tensor" or self.values not in ("raw", "normalized")):
            raise UserError(f"values is {self.values!r}; it is raw or normalized, for the format tensor alone.")
        if self.posterior and self.format != "wan-vae":
            raise UserError(
                f"Files of the format {self.format} have no place for the log-variance; those of wan-vae do."
            )
        check_clip_options(self.size, self.frames, self.length)
        if self.resolution is not None:
            check_type("resolution", self.resolution, (tuple, list), "None or two whole numbers, such as (832, 480)")
            for side in self.resolution:
                check_count("A side of resolution", side)
            object.__setattr__(self, "resolution", tuple(self.resolution))
        check_type("extract", self.extract, (Extract, type(None)), "None or an Extract")
        start, stop = self.frames
        if min(start or 0, stop or 0) >= 0 and stop is not None and stop <= (start or 0):
            raise UserError(f"frames is {start or 0}:{stop}, which holds no frame; the second must be larger.")
        if self.fps is not None:
            exact_rate(self.fps)
        if self.fit is not None and self.size is None:
            raise UserError(f"fit is {self.fit!r}, but there is no size for clips to fit; give one, such as 640x360.")
        if self.architecture is not None and self.format != "ai-toolkit":
            raise UserError(f"architecture is {self.architecture!r}; it is for the format ai-toolkit alone.")
        if self.store is not None:
            check_store(self.store)
        if self.size is not None and self.resolution is not None:
            raise UserError("size and resolution were both given; the size of a clip in buckets is its bucket's.")
        if self.i2v and self.format != "musubi":
            raise UserError(f"i2v is for the format musubi, not {self.format}.")
        if self.source_fps is not None:
            if self.format != "musubi" or self.fps is not None:
                raise UserError("source_fps is for the format musubi, without fps; fps resamples clips of any rate.")
            if not 0.001 <= self.source_fps <= 1000:
                raise UserError(f"source_fps is {self.source_fps}; it must be from 0.001 to 1000, such as 29.97.")
        if not self.upscale and (self.resolution is None or self.format == "ai-toolkit"):
            raise UserError("upscale is off, which is for buckets of a resolution, and not for those of ai-toolkit.")
        if not self.buckets and (self.resolution is None or not self.upscale):
            raise UserError("Without buckets, clips get the size of resolution, which must be given, and upscale on.")
        for name, least in (("size", 1), ("resolution", STEP)):
            sides = [side for side in getattr(self, name) or () if side is not None]
            if sides and min(sides) < least:
                raise UserError(f"{name} has a side of {min(sides)}; sides are from {least} on.")
        self._check_trainer()

    def _check_trainer(self) -> None:
        """Raise a UserError for options that the trainer of the format has no place for."""
        if self.format == "ai-toolkit" and (self.resolution is None or self.resolution[0] != self.resolution[1]):
            raise UserError(
                "ai-toolkit brings every clip to a bucket of its own shape, with the pixels of a square: give"
                " --resolution NxN with the `resolution` of its dataset, such as 512x512."
            )
        if self.format == "simpletuner" and self.resolution is not None:
            raise UserError(
                "SimpleTuner's buckets are those of its metadata, not of --resolution: give --size and --fit crop with"
                " the size that it has for these clips."
            )
        extract = self.extract
        if extract is None or extract.extraction == "full" or self.format not in ONE_FILE_A_CLIP:
            return
        if extract.extraction != "head" or len(extract.target_frames) != 1:
            raise UserError(
                f"{ONE_FILE_A_CLIP[self.format]} has one file a clip: give --target-frames with the `num_frames` of its"
                " dataset, one number, or --extraction full."
            )

    @property
    def stretches(self) -> bool:
        """Whether clips of another shape than `size` are stretched to it without having been asked to."""
        return self.fit is None and self.size is not None and None not in self.size

    def span(self, source: Source) -> tuple[int | None, int | None]:
        """Return the frames that are taken of a clip, as of `encode_file`."""
        return self.frames if source.start is None and source.stop is None else (source.start, source.stop)

    def digest(self) -> str:
        """Return what tells two sets of options apart."""
        values = {**asdict(self), "fps": None if self.fps is None else str(self.fps), "version": _VERSION}
        for name in ("architecture", "store"):  # caches from before these were options stay
            if values[name] is None:
                del values[name]
        if self.architecture is not None and is_of_images(self.architecture):
            values["version"] = f"{_VERSION}, sides of 32 pixels, no time"  # what was cached before was of no use
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


ONE_FILE_A_CLIP = {"ai-toolkit": "ai-toolkit", "simpletuner": "SimpleTuner"}
"""Trainers that have one file for a clip, whichever frames are taken of it, by their formats."""

CACHE_FORMATS = ("wan-vae", "musubi", "tensor", "ai-toolkit", "simpletuner")


@dataclass(frozen=True)
class Job:
    """A clip to be cached, and what its outputs depend on."""

    source: Source
    key: Key

    @property
    def passing_key(self) -> Key:
        """The key of a failure that is no fault of the clip, so that the next run tries it again."""
        return replace(self.key, options="")


@dataclass(frozen=True)
class Todo:
    """Jobs, and how many clips need none."""

    jobs: list[Job]
    kept: int  # cached before
    failed: list[str]  # failed before, and unchanged: the clips' labels
    refused: list[tuple[Job, str]]  # need not be opened, and why


def find_jobs(
    sources: Iterable[Source], manifest: Manifest, options: CacheOptions, checkpoint: str, *, retry: bool
) -> Todo:
    """Return the clips that are not cached as they are now.

    Args:
        sources: The clips.
        manifest: What is there.
        options: Of this run.
        checkpoint: Digest of the weights.
        retry: Whether clips that failed before are tried again.
    """
    digest = options.digest()
    jobs, refused = [], []
    kept, failed = 0, []
    for source in sources:
        reason = None
        try:
            size, modified = _version_of(source.path)
        except OSError:
            size = modified = 0
            reason = f"{source.path} does not exist."
        if source.twin is not None:
            reason = f"{source.path} would have the same file as {source.twin}; rename one."
        job = Job(source, Key(size, modified, source.caption, digest, checkpoint))
        if reason is None and manifest.holds(source.label, job.key):
            kept += 1
            manifest.failures.pop(source.label, None)  # it was missing for a while
        elif not retry and manifest.failed(source.label, job.key):
            failed.append(source.label)
        elif reason is None:
            jobs.append(job)
        else:
            refused.append((job, reason))
    return Todo(jobs, kept, failed, refused)


def _version_of(clip: Path) -> tuple[int, int]:
    """Return the bytes of a clip, and a number that changes when it is written: its time, or for a folder a digest."""
    status = clip.stat()
    if not clip.is_dir():
        return status.st_size, status.st_mtime_ns
    # The time of a folder does not change when a file in it is overwritten.
    files = [(entry.name, entry.stat()) for entry in os.scandir(clip) if entry.is_file()]
    facts = sorted((name, status.st_size, status.st_mtime_ns) for name, status in files)
    digest = hashlib.sha256(repr(facts).encode(errors="surrogateescape")).digest()
    return sum(size for _, size, _ in facts), int.from_bytes(digest[:7], "big")


class CheckpointDigests:
    """Digests of checkpoints that were used before, so that a run without work need not load one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _STAMPS
        self._digests: dict[str, str] = {}
        if self._path.is_file():
            try:
                stored = json.loads(self._path.read_text(encoding="utf-8"))
                self._digests = {str(stamp): str(digest) for stamp, digest in stored.items()}
            except (ValueError, AttributeError, RecursionError):
                self._digests = {}  # it is only a memory

    def find(self, checkpoint: str | Path) -> str | None:
        """Return the digest of a checkpoint whose files are as they were, None if it is not known."""
        stamp = checkpoint_stamp(checkpoint)
        return None if stamp is None else self._digests.get(stamp)

    def remember(self, checkpoint: str | Path, digest: str) -> None:
        """Keep the digest of a checkpoint, if something tells when its files change."""
        stamp = checkpoint_stamp(checkpoint)
        if stamp is not None and self._digests.get(stamp) != digest:
            self._digests[stamp] = digest
            temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self._digests, indent=1), encoding="utf-8")
            temporary.replace(self._path)


def checkpoint_stamp(checkpoint: str | Path) -> str | None:
    """Return a text that changes if the files of a checkpoint do; None for what is fetched from a moving revision."""
    name = str(checkpoint)
    if isinstance(checkpoint, str) and name in preset_names():
        preset: dict[str, Any] = read_preset(name)
        hub = preset.get("hub")
        if "file" in preset:
            return _file_stamp(Path(__file__).parents[1] / "weights" / preset["file"])
        return f"{hub['repository']}@{hub['revision']}/{hub['file']}" if hub and "revision" in hub else None
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in (*path.iterdir(), *(path / "vae").glob("*")) if file.is_file())
        return "\n".join(map(_file_stamp, files))
    if not path.is_file():
        return None
    # A list of files stays the same when one of the files changes.
    beside = sorted(path.parent.glob("*.safetensors")) if path.suffix == ".json" else []
    return "\n".join(map(_file_stamp, (path, *beside)))


def _file_stamp(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
