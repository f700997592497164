import pytest

from tests.benchmark.records import make_job
from tests.helpers import small_config
from wan_vae.config import load_config
from wan_vae.errors import UserError


def test_clips_that_fit() -> None:
    make_job().check_fits(load_config("wan2.1"))
    make_job(frames=1).check_fits(load_config("wan2.2"))
    make_job(frames=3, width=2).check_fits(small_config())


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"frames": 16}, "--frames is 16, not 1 \\+ 4k; 13 or 17 would fit"),
        ({"frames": 2}, "1 or 5 would fit"),
        ({"width": 60}, "--size is 60x16; this model takes multiples of 8, such as 64x16"),
        ({"height": 1}, "such as 16x8"),
        ({"width": 0}, "such as 8x16"),
    ],
)
def test_clips_that_do_not(asked: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_job(**asked).check_fits(load_config("wan2.1"))
