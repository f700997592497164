"""The last steps of reading, the same for every source: laying transparency over black and resizing."""

from pathlib import Path

from wan_vae.video.clip import ClipInfo, Notices
from wan_vae.video.orientation import Picture
from wan_vae.video.rgb import is_transparent, over_black
from wan_vae.video.scaling import Resizer


class Finisher:
    """Makes upright RGB or RGBA pictures of any size into RGB ones of a clip's size."""

    def __init__(self, path: Path, info: ClipInfo, notices: Notices) -> None:
        self._path = path
        self._notices = notices
        self._resize = Resizer(info.width, info.height)

    def __call__(self, picture: Picture) -> Picture:
        """(height, width, 3 or 4) to (info.height, info.width, 3), of the same dtype."""
        if is_transparent(picture):
            self._notices.give(f"{self._path} has transparent pixels; they are laid over black.")
            picture = over_black(picture)
        return self._resize(picture[..., :3])
