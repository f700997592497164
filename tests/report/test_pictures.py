"""Pictures of a report's page."""

import numpy as np
import pytest

from wan_vae.report.pictures import PictureFile, PicturePlan


@pytest.mark.parametrize(("width", "height"), [(16384, 16), (16, 16384), (16383, 1)])
def test_plan_of_any_size_is_one_that_webp_takes(width: int, height: int) -> None:
    plan = PicturePlan.of(1, width, height, 2)
    assert max(plan.width, plan.height) <= 16383
    assert plan.lossless == (max(width, height) < 16384)
    with PictureFile(1, 2**20, lossless=plan.lossless) as file:
        content = file.encode(np.zeros((height, width, 3), np.uint8), plan.width, plan.height)
    assert content.startswith(b"RIFF")
