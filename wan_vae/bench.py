"""Which shots of which clips models are measured on, from a YAML file."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from wan_vae.errors import UserError
from wan_vae.yaml_file import read_yaml

_KEYS = ("frames", "short_side", "shots")


@dataclass(frozen=True)
class Shot:
    """Part of a clip without a cut.

    Attributes:
        clip: The file.
        start: Index of the first frame.
        stop: Index after the last; the clip may end before.
    """

    clip: Path
    start: int
    stop: int

    @property
    def name(self) -> str:
        """A name for files about this shot, such as "bikes-030"."""
        return f"{self.clip.stem}-{self.start:03}"


@dataclass(frozen=True)
class Bench:
    """What to measure models on.

    Attributes:
        short_side: Pixels of the shorter side that each shot is scaled to.
        shots: In the order of the report.
    """

    short_side: int
    shots: tuple[Shot, ...]


def read_bench(path: Path, clips: Path) -> Bench:
    """Read which shots to measure on.

    Args:
        path: A YAML file such as `configs/evaluation/bench.yaml`.
        clips: The folder that the clips are in.

    Raises:
        UserError: The file is missing, not YAML, or does not say what it has to, or a clip is missing.
    """
    content = read_yaml(path, missing=f"{path} does not exist; name a YAML file such as configs/evaluation/bench.yaml.")
    if not isinstance(content, dict) or sorted(map(str, content)) != sorted(_KEYS):
        raise UserError(f"{path} does not list shots: it must have {', '.join(_KEYS)} and nothing else.")
    for key in ("frames", "short_side"):
        if type(content[key]) is not int or content[key] < 1:
            raise UserError(f"{path} has {key}: {content[key]!r}; it must be a whole number above 0.")
    starts_of = content["shots"]
    if not isinstance(starts_of, dict) or not starts_of:
        raise UserError(f"{path} has shots: {starts_of!r}; it must map clips to the first frames of their shots.")
    shots = []
    for clip, starts in starts_of.items():
        if not _are_starts(starts):
            raise UserError(f"{path} has {clip}: {starts!r}; it must be a list of ever higher whole numbers from 0 on.")
        if not (clips / str(clip)).exists():
            raise UserError(f"{path} lists {clip}, which is not in {clips}; name the folder that it is in.")
        for start, following in itertools.zip_longest(starts, starts[1:], fillvalue=math.inf):
            shots.append(Shot(clips / str(clip), int(start), int(min(start + content["frames"], following))))
    return Bench(content["short_side"], tuple(shots))


def _are_starts(starts: object) -> bool:
    return (
        isinstance(starts, list)
        and bool(starts)
        and all(type(start) is int and start >= 0 for start in starts)
        and all(first < second for first, second in itertools.pairwise(starts))
    )
