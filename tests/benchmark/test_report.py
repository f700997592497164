from tests.benchmark.records import make_record
from wan_vae.benchmark.report import report


def test_report_has_all_tables() -> None:
    text = report(make_record())
    assert "5 frames of 32x16, on A Machine, 1 of 8 cores" in text
    assert "8.0 GFLOP/s in fp32, 16.0 GFLOP/s in bf16" in text
    rates = [line for line in text.splitlines() if line.startswith("encode") and "FLOP/s" in line]
    lines = {tuple(line.split()[:3]): line for line in rates}
    ratios = "2.00 (1.00 to 3.00)  2.00 (1.00 to 3.00)  3.00 (1.50 to 4.00)  not measured  4.0 GFLOP/s"
    assert ratios in lines["encode", "fp32", "wan_vae"]
    assert "to" not in lines["encode", "fp32", "diffusers"] + lines["encode", "fp32", "openvino"]
    assert "Root mean square error of raw latents and frames against diffusers in float64:" in text
    assert "(2 others)" in text
    assert "Where encode in fp32 spends its 4.250 s, by layers:" in text


def test_report_on_cuda_shows_reserved_memory() -> None:
    assert "3 MiB   5 MiB" in report(make_record(device="cuda"))


def test_report_without_diffusers_has_no_ratios() -> None:
    record = make_record(alone=True) | {"errors": None, "profiles": None}
    text = report(record)
    assert "diffusers" not in text
    assert "openvino" not in text
    assert "encode  bf16   wan_vae  0.500 s" in text
