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
        ("crop: 8", "crop: 6", "the settings: the crop 6 is not a multiple of the patch, 4."),
        ("warmup: 1", "warmup: 2", "training: all 2 steps are warm-up."),
        ("    plain: [4, 4, 4]\n", "", "network: widths lacks plain."),
        ("validate_every: 1", "validate_every: 3", "training: 2 steps are not a multiple of validate_every, 3."),
        ("[coffee]", "[brick]", "photos: brick is both trained and validated on."),
        ("[coffee]", "[bunny]", "photos.held_out.0: Input should be"),
        ("depths: [1, 2, 3]", "depths: [1, 3, 2]", "the settings: depths is [1, 3, 2]; they must ascend."),
        ("seeds: [0, 1]", "seeds: [1, 1]", "the settings: seeds is [1, 1]; none may be listed twice."),
        ("patch: 4", "side: 4", "network.patch: Field required."),
        ("patch: 4", "patch: [", "is not a YAML file"),
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
