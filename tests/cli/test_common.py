"""Helpers of the commands."""

import pytest

from wan_vae.cli.common import print_result
from wan_vae.evaluation.metrics import Score


@pytest.mark.parametrize(("psnr", "text"), [(float("inf"), "infinite"), (31.234, "31.23 dB")])
def test_print_result_of_any_psnr_is_text(psnr: float, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    score = Score(psnr=psnr, ssim=1.0, lpips=None)
    print_result({"psnr": score.to_dict()["psnr"], "psnr_minimum": score.to_dict()["psnr"]}, as_json=False)
    assert capsys.readouterr().out.count(text) == 2
