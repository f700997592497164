from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.helpers import chunk_plans, small_config
from wan_vae.io import Color
from wan_vae.io.latents_file import LatentsFile, LatentsInfo, LatentsWriter


def info(latents: torch.Tensor) -> LatentsInfo:
    return LatentsInfo(
        frames=2 * latents.shape[2] - 1,
        width=2 * latents.shape[4] - 1,
        height=2 * latents.shape[3],
        fps=Fraction(30000, 1001),
        pixel_aspect=Fraction(16, 15),
        color=Color("bt709", True, 1, 13),
        config=small_config(),
        checkpoint="0123",
    )


@given(
    data=st.data(),
    frames=st.integers(1, 6),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_what_is_written_in_chunks_is_read_in_chunks(
    data: st.DataObject,
    frames: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("latents") / "l.safetensors"
    latents = torch.randn(1, 3, frames, height, width).to(dtype)
    plan = [count for count in data.draw(chunk_plans(frames)) if count > 0]
    with LatentsWriter(path) as writer:
        for chunk in latents.split(plan, dim=2):
            writer.write(chunk)
        assert writer.finish(info(latents)) == tuple(latents.shape)
    # The library's own reader sees the same file.
    assert torch.equal(load_file(path)["latents"], latents)
    read = LatentsFile(path)
    assert read.info == info(latents)
    assert torch.equal(torch.cat(list(read.chunks(data.draw(st.integers(1, 7)))), dim=2), latents)
    assert [item.name for item in path.parent.iterdir()] == ["l.safetensors"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with LatentsWriter(tmp_path / "l.safetensors") as writer:
            writer.write(torch.zeros(1, 3, 1, 2, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not any(tmp_path.iterdir())
