"""What a file says of its own contents: the result of `containers.read_structure`."""

from collections import Counter
from dataclasses import dataclass, field

SEARCHED = 1 << 26  # bytes to search at most for what should not be there


@dataclass
class Structure:
    """Packets by track: the track's id in MP4, the place among all streams in AVI, among video tracks in Matroska.

    Attributes:
        packets: Packets that the file should yield; a track that is not there is unknown.
        trimmed: Tracks of MP4 whose edit list leaves out some of these packets on purpose.
        damage: How and where the structure is broken such that packets are missing; None if it is whole.
        joined: Several files follow each other, as Matroska allows, each with a clock of its own.
        missing: Bytes that the header declares beyond the end of the file. They need not have held pictures.
    """

    packets: Counter[int] = field(default_factory=Counter)
    trimmed: set[int] = field(default_factory=set)
    damage: str | None = None
    joined: bool = False
    missing: int = 0
