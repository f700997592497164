"""Training data: a store of decoded frames, and batches of random crops from it.

Sources are decoded and scaled once, into arrays on disk that random crops are read from. Photos become clips by a
virtual camera that pans and zooms.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.evaluation.lpips import SMALLEST_SIDES
from wan_vae.io import open_clip
from wan_vae.io.atomic_output import remove_partial, written_beside
from wan_vae.io.color import eight_bits
from wan_vae.io.file_names import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from wan_vae.io.frames import Frames
from wan_vae.training.recipe import DataSection, Recipe, Stage

LARGEST_ZOOM_OUT = 2.5
PAN_PIXELS_PER_FRAME = 1.5
ZOOM_PER_FRAME = 0.005
FAST = 4  # times the camera's speed, and most frames per frame of a clip, in fast clips
MOST_OBJECTS = 3  # that pass in a fast clip


@dataclass(frozen=True)
class StoredClip:
    """A clip in the frame store: an array (count, height, width, 3) of uint8 RGB at `path`."""

    name: str  # file name of the source
    path: Path
    count: int

    def frames(self) -> NDArray[np.uint8]:
        """Return the frames, memory-mapped."""
        return np.load(self.path, mmap_mode="r")


@dataclass(frozen=True)
class Sources:
    """The stored data of a run; photos are clips of one frame, and only what is held out is validated on."""

    videos: tuple[StoredClip, ...]
    photos: tuple[StoredClip, ...]
    held_out: tuple[StoredClip, ...]

    def names(self) -> dict[str, list[str]]:
        """Return the file names by kind, which identify the data when a run is resumed elsewhere."""
        return {kind: [clip.name for clip in clips] for kind, clips in vars(self).items()}

    def stored_bytes(self) -> int:
        """Return the size of the stored arrays."""
        return sum(clip.path.stat().st_size for clips in vars(self).values() for clip in clips)


def list_files(place: Path | None, suffixes: Collection[str]) -> list[Path]:
    """Return the file `place`, or the files in and below the folder `place` that have one of the suffixes, sorted.

    Names that begin with a dot are hidden, as are those below them.

    Raises:
        UserError: `place` does not exist, the folder has no such file, or one of them is a link to nowhere.
    """
    if place is None:
        return []
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place} is neither a file nor a folder; name the training data (--videos, --photos).")
    named = (path for path in place.rglob("*") if path.suffix.lower() in suffixes)
    found = sorted(path for path in named if not any(part.startswith(".") for part in path.relative_to(place).parts))
    if missing := [path for path in found if not path.exists()]:
        raise UserError(f"{missing[0]} is a link to a file that does not exist; restore the file or remove the link.")
    found = [path for path in found if path.is_file() or path.is_dir()]  # no pipes or devices
    if not found:
        raise UserError(f"{place} holds no file ending in {', '.join(sorted(suffixes))}.")
    return found


def store_clip(source: Path, folder: Path, *, short_side: int, most_frames: int, enlarge: bool) -> StoredClip:
    """Decode up to `most_frames` frames of a clip or image into the frame store, unless they are already there.

    Frames are scaled to `short_side` pixels on their short side; smaller frames only with `enlarge`.
    """
    status = source.stat()
    identity = [str(source.resolve()), status.st_size, status.st_mtime_ns, short_side, most_frames, enlarge]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = folder / f"{source.stem}-{digest}.npy"
    count = _count(path)
    if count is None:
        with open_clip(source) as clip:
            scale = min(short_side / min(clip.info.width, clip.info.height), math.inf if enlarge else 1.0)
            size = round(clip.info.width * scale), round(clip.info.height * scale)
        with (
            open_clip(source, size=size, fit="stretch", frames=(0, most_frames)) as clip,
            written_beside(path) as beside,
        ):
            _write_array(beside, (clip.info.frames, size[1], size[0], 3), clip.chunks(16))
        count = _count(path)
        assert count is not None, path
    return StoredClip(source.name, path, count)


def _count(path: Path) -> int | None:
    """Return the frames of a stored clip, or None where it is missing or damaged, as after a power failure."""
    try:
        return len(np.load(path, mmap_mode="r"))
    except (EOFError, FileNotFoundError, ValueError):
        return None


def _write_array(path: Path, shape: tuple[int, int, int, int], chunks: Iterator[Frames]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:  # not memory-mapped, where a full disk would kill the process
        np.lib.format.write_array_header_1_0(file, header)
        begin, written = file.tell(), 0
        for chunk in chunks:
            file.write(np.ascontiguousarray(eight_bits(chunk)).data)
            written += len(chunk)
        file.seek(0)  # what was written counts, not what the source announced
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (written, *shape[1:])})
        assert file.tell() == begin


def store_sources(data: DataSection, folder: Path) -> Sources:
    """Decode all sources of a recipe into the frame store at `folder`.

    Raises:
        UserError: A source cannot be read, or `held_out` names an unknown source or all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    paths = [(path, True) for path in list_files(data.videos, VIDEO_SUFFIXES)]
    paths += [(path, False) for path in list_files(data.photos, IMAGE_SUFFIXES)]
    unknown = set(data.held_out) - {path.name for path, _ in paths}
    if unknown:
        raise UserError(
            f"held_out names {min(unknown)}, which is not among the training data; name files that are, with --held-out"
            " or in the recipe's section data."
        )
    stored: dict[str, list[StoredClip]] = {"videos": [], "photos": [], "held_out": []}
    for path, is_video in paths:
        short_side = data.video_short_side if is_video else data.photo_short_side
        clip = store_clip(path, folder, short_side=short_side, most_frames=data.most_frames, enlarge=is_video)
        stored["held_out" if path.name in data.held_out else "videos" if is_video else "photos"].append(clip)
    if not stored["videos"] and not stored["photos"]:
        raise UserError("held_out names every source; leave something to train on.")
    return Sources(**{kind: tuple(clips) for kind, clips in stored.items()})


def check_sources(sources: Sources, recipe: Recipe, config: VAEConfig) -> None:
    """Check that every source can be encoded, and those held out be measured.

    Raises:
        UserError: A source is too small; the message names it.
    """
    least = config.spatial_compression
    measured = max(least, SMALLEST_SIDES[recipe.lpips.network] if recipe.lpips is not None else 0)
    for clips, side in ((sources.videos, least), (sources.photos, least), (sources.held_out, measured)):
        for clip in clips:
            height, width = clip.frames().shape[1:3]
            # Those held out are cropped to what the model takes.
            if min(height, width) // least * least < side:
                needed = -(-side // least) * least
                raise UserError(f"{clip.name} is {width}x{height}, and sides of {needed} are needed; take it out.")


def clips_too_short(sources: Sources, stage: Stage) -> list[StoredClip]:
    """Return the clips that a stage leaves out, at least for its longest length."""
    longest = max(length for length, share in stage.lengths.items() if share)
    return [clip for clip in sources.videos if clip.count < longest]


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of one process."""

    video: Tensor  # (B, 3, T, crop, crop) in [-1, 1]
    origins: tuple[str, ...]  # file and position of every clip


class TrainingBatches(Dataset[TrainingBatch]):
    """All batches of a run by number; a batch is a function of its number and the recipe's seed.

    `batches_per_step` counts the batches of an optimizer step over all processes.

    Raises:
        UserError: A stage needs longer clips than there are, and there are no photos.
    """

    def __init__(self, sources: Sources, recipe: Recipe, batches_per_step: int) -> None:
        self._videos, self._photos = sources.videos, sources.photos
        self._recipe, self._batches_per_step = recipe, batches_per_step
        longest = max((clip.count for clip in self._videos), default=0)
        for stage in recipe.stages:
            for length, share in stage.lengths.items():
                if share and length > longest and not self._photos:
                    raise UserError(f"no training clip has {length} frames, which stage {stage.name} asks for.")

    def __len__(self) -> int:
        return self._recipe.steps * self._batches_per_step

    def __getitem__(self, number: int) -> TrainingBatch:
        step = number // self._batches_per_step
        stage = self._recipe.stages[self._recipe.stage_at(step)[0]]
        # The length depends on the step only, so that all processes have equal work.
        lengths, shares = zip(*sorted(stage.lengths.items()), strict=True)
        probabilities = np.array(shares) / sum(shares)
        length = int(np.random.default_rng((self._recipe.seed, 0, step)).choice(lengths, p=probabilities))
        random = np.random.default_rng((self._recipe.seed, 1, number))
        clips = [self._clip(stage, length, random) for _ in range(stage.batch)]
        return TrainingBatch(torch.stack([video for video, _ in clips]), tuple(origin for _, origin in clips))

    def _clip(self, stage: Stage, length: int, random: np.random.Generator) -> tuple[Tensor, str]:
        long_enough = [clip for clip in self._videos if clip.count >= length]
        fast = bool(stage.fast_share) and random.random() < stage.fast_share
        if self._photos and (not long_enough or random.random() < stage.photo_share):
            clip = self._photo(random)
            pan = random.normal(0, FAST * PAN_PIXELS_PER_FRAME, 2) if fast else None
            levels, position = ken_burns(clip.frames()[0], length, stage.crop, random, pan)
        else:
            clip = long_enough[random.integers(len(long_enough))]
            step = int(random.integers(1, max(1, min(FAST, clip.count // length)) + 1)) if fast else 1
            levels, position = random_crop(clip.frames()[::step], length, stage.crop, random)
        if fast and self._photos:
            for _ in range(random.integers(MOST_OBJECTS + 1)):
                levels = pass_object(levels, self._photo(random).frames()[0], random)
        if random.random() < 0.5:
            levels = levels.flip(-1)
        return levels / 127.5 - 1, f"{clip.name} {position}"

    def _photo(self, random: np.random.Generator) -> StoredClip:
        return self._photos[random.integers(len(self._photos))]


def random_crop(frames: NDArray[np.uint8], length: int, crop: int, random: np.random.Generator) -> tuple[Tensor, str]:
    """Crop a random square of successive frames (n, height, width, 3), up to `LARGEST_ZOOM_OUT` times `crop` wide.

    Returns:
        The square, scaled to (3, length, crop, crop) in [0, 255], and a description of its position.
    """
    count, height, width = frames.shape[:3]
    side = min(round(crop * random.uniform(1, LARGEST_ZOOM_OUT)), height, width)
    first = int(random.integers(count - length + 1))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    square = np.array(frames[first : first + length, top : top + side, left : left + side])
    levels = torch.from_numpy(square).permute(0, 3, 1, 2).to(torch.float32)
    if side != crop:
        levels = F.interpolate(levels, size=(crop, crop), mode="bicubic", antialias=True).clamp(0, 255)
    return levels.transpose(0, 1), f"frame {first}, {side} pixels at {left},{top}"


def ken_burns(
    photo: NDArray[np.uint8],
    length: int,
    crop: int,
    random: np.random.Generator,
    pan: NDArray[np.float64] | None = None,
) -> tuple[Tensor, str]:
    """Pan and zoom over a photo (height, width, 3); the results are those of `random_crop`.

    `pan` is the camera's motion to the right and down, in pixels of the result per frame; None draws one.
    """
    height, width = photo.shape[:2]
    # Photo pixels per output pixel, such that the view covers at most half of the photo's short side.
    scale = random.uniform(1, max(1.0, 0.5 * min(height, width) / crop))
    half = 0.5 * crop * scale
    center = [random.uniform(min(half, side / 2), max(side - half, side / 2)) for side in (width, height)]
    pan = random.normal(0, PAN_PIXELS_PER_FRAME, 2) if pan is None else pan
    zoom = random.normal(0, ZOOM_PER_FRAME)
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].to(torch.float32)
    if scale > 1:  # grid_sample alone would alias
        size = round(height / scale), round(width / scale)
        image = F.interpolate(image, size=size, mode="bicubic", antialias=True)
    places = []
    for time in range(length):
        offset = time - (length - 1) / 2
        view = half * math.exp(zoom * offset)
        x, y = (center[axis] + pan[axis] * scale * offset for axis in (0, 1))
        places.append([[2 * view / width, 0, 2 * x / width - 1], [0, 2 * view / height, 2 * y / height - 1]])
    grid = F.affine_grid(torch.tensor(places, dtype=torch.float32), [length, 3, crop, crop], align_corners=False)
    # Linear interpolation would blur: a network that has never seen sharp motion does not learn to keep it.
    views = F.grid_sample(
        image.expand(length, -1, -1, -1), grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return views.clamp(0, 255).transpose(0, 1), f"{scale:.2f} times reduced around {center[0]:.0f},{center[1]:.0f}"


def pass_object(levels: Tensor, photo: NDArray[np.uint8], random: np.random.Generator) -> Tensor:
    """Let an ellipse with the texture of a photo pass in front of a clip (3, T, side, side) in [0, 255]."""
    length, side = levels.shape[1:3]
    velocity = random.normal(0, FAST * PAN_PIXELS_PER_FRAME, 2)
    texture, _ = ken_burns(photo, length, side, random, -velocity)
    radii, middle = random.uniform(0.1, 0.4, 2) * side, random.uniform(0, side, 2)
    pixels, time = torch.arange(side), torch.arange(length) - (length - 1) / 2
    x, y = ((pixels - middle[axis] - velocity[axis] * time[:, None]) / radii[axis] for axis in (0, 1))  # (T, side) each
    distance = (x[:, None, :].square() + y[:, :, None].square()).sqrt()
    mask = ((1 - distance) * float(radii.min())).clamp(0, 1).float()  # one pixel wide edges
    return levels + mask * (texture - levels)


def center_crop(clips: Sequence[StoredClip], length: int, config: VAEConfig) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield name and at most `length` frames of each clip, center-cropped to a size and length that the model takes."""
    for clip in clips:
        frames = clip.frames()[: 1 if config.images_only else length]
        count = len(frames) - (len(frames) - 1) % config.temporal_compression
        height, width = (side - side % config.spatial_compression for side in frames.shape[1:3])
        top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
        yield clip.name, np.array(frames[:count, top : top + height, left : left + width])
