"""A Ray cluster gives what one machine gives, also when a node of it dies."""

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.running import write_clip
from tests.dataset.files import outputs
from tests.helpers import random_vae, small_config
from wan_vae import WanVAE
from wan_vae.dataset import CacheOptions, CacheResult, cache_latents
from wan_vae.errors import UserError

CLIPS = 24


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "vae.safetensors"
    random_vae(small_config(latent_channels=16), torch.float32).save(path)
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(CLIPS):
        write_clip(folder / f"{number}.mkv", frames=9 + number % 3, width=64, height=48, fps=Fraction(25))
    (folder / "broken.mp4").write_bytes(b"no clip")
    return folder


def test_without_ray_a_sentence_says_how_to_get_it(
    checkpoint: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray needs Ray Data, which is not installed: pip install"):
        cache_latents(clips, tmp_path / "out", checkpoint, ray="auto")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:9", "there is no such cluster"),
        ("ray://127.0.0.1:10001", "write auto, or the address of the cluster's head"),
    ],
)
def test_address_without_a_cluster_is_told_at_once(
    checkpoint: Path, clips: Path, tmp_path: Path, address: str, sentence: str
) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed")
    with pytest.raises(UserError, match=sentence):
        cache_latents(clips, tmp_path / "out", checkpoint, ray=address)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head, which does no work, and three nodes of one core."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        try:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2**27})
        except Exception as error:
            pytest.skip(f"NO CLUSTER could be started here: {error}")
        try:
            cluster.workers = [cluster.add_node(num_cpus=1, object_store_memory=2**27) for _ in range(3)]
            cluster.wait_for_nodes()
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def load_deadly(name: str | Path) -> WanVAE:
    """Load a model with which a process dies of clips of one size, as of a fault in a library."""
    vae = WanVAE.from_pretrained(name)
    encode_stream = vae.encode_stream

    def deadly(video: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for chunk in video:
            if chunk.shape[-1] == 40:
                os.kill(os.getpid(), signal.SIGKILL)
            yield chunk

    vae.encode_stream = lambda video, **options: encode_stream(deadly(video), **options)  # type: ignore[assignment]
    return vae


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_clip_of_which_processes_die_is_listed_and_the_others_are_cached(
    cluster: Any, checkpoint: Path, clips: Path, tmp_path: Path
) -> None:
    for path in sorted(clips.glob("*"))[6:]:
        path.unlink()
    write_clip(clips / "12b.mkv", frames=9, width=40, height=48, fps=Fraction(25))
    options = CacheOptions(store=(tmp_path / "bucket").as_uri())
    result = cache_latents(
        clips,
        tmp_path / "out",
        checkpoint,
        options=options,
        ray=cluster.address,
        threads=1,
        devices=2,
        load=load_deadly,
    )
    assert (result.cached, result.failed, len(outputs(tmp_path / "bucket"))) == (6, 1, 6)
    (failure,) = (tmp_path / "out" / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(failure)["source"] == "12b.mkv"
    assert "the process that encoded it died 3 times" in failure


@pytest.mark.slow
def test_cluster_of_which_a_node_dies_writes_what_one_machine_writes(
    cluster: Any, checkpoint: Path, clips: Path, tmp_path: Path
) -> None:
    killed = []

    def kill_one(result: CacheResult) -> None:
        if result.cached >= 3 and not killed:
            killed.append(result.cached)
            cluster.remove_node(cluster.workers[0], allow_graceful=False)

    out = tmp_path / "cluster"
    result = cache_latents(clips, out, checkpoint, ray=cluster.address, threads=1, progress=kill_one)
    assert killed
    assert killed[0] < CLIPS
    assert (result.cached, result.failed) == (CLIPS, 1)
    cache_latents(clips, tmp_path / "one", checkpoint)
    assert outputs(out) == outputs(tmp_path / "one")
