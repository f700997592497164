import re
from pathlib import Path

import pytest

from experiments.residual_blocks.settings import load_ablation
from experiments.residual_blocks.tests.conftest import QUICK, ROOT
from wan_vae.errors import UserError


def test_the_shipped_settings_are_sound() -> None:
    for path in (ROOT / "experiments" / "residual_blocks" / "configs").iterdir():
        load_ablation(path)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("frames: 3", "frames: 4", "training: 4 frames are not 1 + 2k."),
        ("crop: 8", "crop: 6", "training: the crop 6 is not a multiple of 4."),
        ("validate_every: 1", "validate_every: 3", "training: 2 steps are not a multiple of validate_every, 3."),
        ("[coffee]", "[brick]", "photos: brick is both trained and validated on."),
        ("[coffee]", "[bunny]", "photos.held_out.0: Input should be"),
        ("depths: [1, 2, 3]", "depths: [1, 3, 2]", "the settings: depths is [1, 3, 2]; they must ascend."),
        ("seeds: [0, 1]", "seeds: [1, 1]", "the settings: seeds is [1, 1]; none may be listed twice."),
        ("width: 4", "breadth: 4", "network.width: Field required."),
        ("width: 4", "width: [", "is not a YAML file"),
    ],
)
def test_mistakes_are_named(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    text = QUICK.read_text()
    assert old in text
    path = tmp_path / "settings.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=re.escape(complaint)):
        load_ablation(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no .*nothing\.yaml"):
        load_ablation(tmp_path / "nothing.yaml")
