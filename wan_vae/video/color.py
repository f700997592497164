"""How a clip's RGB relates to the YUV it is stored as."""

from dataclasses import dataclass, replace

from wan_vae.errors import ClipError

UNSPECIFIED = 2
"""Code point of an unspecified matrix, primaries or transfer (ISO/IEC 23091-2)."""

BT709_CODE = 1

RANGE_LIMITED, RANGE_FULL = 1, 2
"""Numbers FFmpeg gives the two sample ranges; 0 is unspecified."""

_MATRIX_OF_CODE = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    9: "bt2020",
    10: "bt2020",
}
_CODE_OF_MATRIX = {"rgb": 0, "bt709": 1, "fcc": 4, "bt601": 6, "smpte240m": 7, "bt2020": 9}

_RED_AND_BLUE_IN_LUMA = {
    "bt709": (0.2126, 0.0722),
    "fcc": (0.30, 0.11),
    "bt601": (0.299, 0.114),
    "smpte240m": (0.212, 0.087),
    "bt2020": (0.2627, 0.0593),
}


@dataclass(frozen=True)
class Color:
    """How RGB and the stored YUV relate; carried from a source to the output made from it.

    Attributes:
        matrix: "bt601", "bt709", "bt2020", "smpte240m", "fcc", or "rgb" for pictures and RGB video, which have none.
        full_range: Whether black and white are the ends of the sample range (0 and 255 for 8 bits) rather than 16
            and 235.
        primaries: Code point of ISO/IEC 23091-2, 2 for unspecified; passed through untouched.
        transfer: Likewise, for the transfer characteristics.
    """

    matrix: str
    full_range: bool
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    def __post_init__(self) -> None:
        codes = (self.primaries, self.transfer)
        if self.matrix not in _CODE_OF_MATRIX or not all(isinstance(code, int) and 0 <= code < 256 for code in codes):
            raise ClipError(f"{self} is no color; the matrices are {', '.join(_CODE_OF_MATRIX)}.")

    @property
    def matrix_code(self) -> int:
        """Code point of the matrix in ISO/IEC 23091-2."""
        return _CODE_OF_MATRIX[self.matrix]

    @property
    def range_code(self) -> int:
        """Number FFmpeg gives the range."""
        return RANGE_FULL if self.full_range else RANGE_LIMITED

    @property
    def range_name(self) -> str:
        """Name swscale gives the range."""
        return "full" if self.full_range else "limited"

    @property
    def luma_weights(self) -> tuple[float, float, float]:
        """Shares of red, green and blue in luma; they sum to 1. Only for a matrix other than "rgb"."""
        red, blue = _RED_AND_BLUE_IN_LUMA[self.matrix]
        return red, 1 - red - blue, blue

    def for_yuv(self) -> "Color":
        """The color to store as YUV: itself, or limited-range BT.709 throughout for what was RGB.

        BT.709's transfer is what players assume of such a file anyway, and show sRGB pictures with.
        """
        return Color("bt709", False, BT709_CODE, BT709_CODE) if self.matrix == "rgb" else self

    def for_rgb(self) -> "Color":
        """The color to store as RGB: primaries and transfer stay, the matrix and the range have no part in it."""
        return replace(self, matrix="rgb", full_range=True)


RGB = Color("rgb", True)


def stored_color(
    matrix_code: int, range_code: int, primaries: int, transfer: int, *, width: int, height: int, always_full: bool
) -> Color:
    """The color of YUV samples, given their tags.

    Players take an untagged clip for BT.709 when it is of high definition and for BT.601 otherwise, and its range for
    limited; so do we, since the RGB wanted is the one that was seen. `always_full` is for the formats that have no
    limited range (FFmpeg's yuvj*).

    Raises:
        ClipError: The matrix is one that cannot be undone here (YCgCo, ICtCp and the like).
    """
    if matrix_code == UNSPECIFIED or matrix_code == 0:  # RGB samples never come here, so a 0 is a wrong tag
        matrix = "bt709" if height >= 720 or width >= 1280 else "bt601"
    elif matrix_code in _MATRIX_OF_CODE:
        matrix = _MATRIX_OF_CODE[matrix_code]
    else:
        raise ClipError(
            f"color matrix {matrix_code} (ISO/IEC 23091-2) cannot be read; convert the clip to BT.709 first."
        )
    return Color(matrix, always_full or range_code == RANGE_FULL, primaries, transfer)
