from pathlib import Path

import pytest

from wan_vae.benchmark.measure import describe_machine


def test_a_processor_and_its_instructions(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: A Processor  \nflags\t\t: fpu avx2 avx512_bf16 amx_bf16\n\nprocessor\t: 1\n"
    )
    found = describe_machine("cpu", tmp_path / "cpuinfo")
    assert (found["device"], found["name"], found["cpu"]) == ("cpu", "A Processor", "A Processor")
    assert found["instructions"] == ["avx2", "avx512_bf16", "amx_bf16"]
    assert found["cores"] >= 1


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    found = describe_machine("cpu", tmp_path / "nowhere")
    assert (found["name"], found["instructions"]) == ("arm64", [])
