"""Several processes of one machine give what one gives, and end as they should."""

import json
import os
import signal
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.cli.running import write_clip
from tests.dataset.files import outputs
from tests.helpers import random_vae, small_config
from wan_vae import WanVAE
from wan_vae.dataset import CacheOptions, CacheResult, cache_latents
from wan_vae.dataset.engines import memory_share
from wan_vae.errors import UserError
from wan_vae.inference.budget import reports_free_memory
from wan_vae.io import atomic_output


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "vae.safetensors"
    random_vae(small_config(latent_channels=16), torch.float32).save(path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(6):
        write_clip(folder / f"{number}.mkv", frames=5 + number, width=32, height=16, fps=Fraction(25))
    (folder / "broken.mp4").write_bytes(b"no clip")
    return folder


def test_two_processes_write_what_one_writes(
    checkpoint: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cache_latents(clips, tmp_path / "one", checkpoint)
    monkeypatch.setattr(atomic_output, "named", False)
    two = cache_latents(clips, tmp_path / "two", checkpoint, devices=2)
    assert atomic_output.named  # what a command that is interrupted says depends on it
    assert (two.cached, two.failed, two.frames) == (one.cached, one.failed, one.frames) == (6, 1, 45)
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one")
    (failure,) = (tmp_path / "two" / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(failure)["source"] == "broken.mp4"


def load_here_only(parent: int, name: str | Path) -> WanVAE:
    if os.getpid() != parent:
        raise UserError(f"{name} is gone.")
    return WanVAE.from_pretrained(name)


def test_process_that_cannot_load_ends_the_run_with_its_sentence(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    load = partial(load_here_only, os.getpid())
    with pytest.raises(UserError, match=r"vae.safetensors is gone\."):
        cache_latents(clips, tmp_path / "out", checkpoint, devices=2, load=load)


def load_and_die(parent: int, name: str | Path) -> WanVAE:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return WanVAE.from_pretrained(name)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_process_that_dies_ends_the_run_with_a_sentence(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"A process died \(signal SIGKILL\)\. What is cached stays"):
        cache_latents(clips, tmp_path / "out", checkpoint, devices=2, load=partial(load_and_die, os.getpid()))


def test_exception_of_progress_ends_the_processes_soon(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    def stop(result: CacheResult) -> None:
        if result.cached:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        cache_latents(clips, tmp_path / "out", checkpoint, devices=2, progress=stop)
    begun = time.monotonic()
    assert cache_latents(clips, tmp_path / "out", checkpoint).kept >= 1
    assert time.monotonic() - begun < 60
    assert not list((tmp_path / "out").glob(".*"))  # nothing half written


def test_model_in_memory_is_refused_for_several_processes(clips: Path, tmp_path: Path) -> None:
    vae = random_vae(small_config(latent_channels=16), torch.float32)
    with pytest.raises(UserError, match="vae is a model, which other processes cannot share"):
        cache_latents(clips, tmp_path / "out", vae, devices=2)


def test_memory_share_divides_what_is_free_and_leaves_numbers() -> None:
    if torch.cuda.is_available():
        pytest.skip("GPUs share no memory")
    assert memory_share("1GiB", 4) == "1GiB"
    assert memory_share("auto", 1) == "auto"
    if not reports_free_memory(torch.device("cpu")):
        pytest.skip("this system does not tell what is free")
    half, part = memory_share("auto", 2), memory_share("auto", 8)
    assert isinstance(half, int)
    assert isinstance(part, int)
    assert part < half / 3


def test_spans_of_one_clip_are_clips_of_their_own(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    rows = [{"path": str(clips / "5.mkv"), "start": start, "stop": start + 5} for start in (0, 5)]
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first = cache_latents(listed, tmp_path / "out", checkpoint)
    again = cache_latents(listed, tmp_path / "out", checkpoint)
    assert (first.cached, again.kept, again.cached) == (2, 2, 0)
    assert len(outputs(tmp_path / "out")) == 2
    rows[1]["stop"] = 9
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert cache_latents(listed, tmp_path / "out", checkpoint).cached == 1


def test_options_for_all_clips_are_those_of_encode_file(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    from wan_vae import encode_file
    from wan_vae.io import load_latents

    options = CacheOptions(frames=(1, None), length=4, fps=12, posterior=True)
    cache_latents([clips / "4.mkv", clips / "5.mkv"], tmp_path / "out", checkpoint, options=options)
    encode_file(
        clips / "5.mkv", tmp_path / "one.safetensors", checkpoint, frames=(1, None), length=4, fps=12, posterior=True
    )
    stored = tmp_path / "out" / "5.mkv.safetensors"
    assert stored.read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    assert load_latents(stored)[1].frames == 4
    with pytest.raises(UserError, match="musubi have no place for the log-variance"):
        CacheOptions(format="musubi", posterior=True)
