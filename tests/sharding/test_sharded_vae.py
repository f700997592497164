"""The VAE in several processes gives each of them what one alone gives."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tests.helpers import (
    chunk_plans,
    random_latents,
    random_vae,
    random_video,
    relative_difference,
    small_config,
    small_configs,
)
from tests.sharding.workers import Workers
from wan_vae import UserError, VAEConfig
from wan_vae.config import load_config
from wan_vae.sharding.sharded_vae import ShardedVAE


def sharded_vae(group: dist.ProcessGroup, config: VAEConfig, dtype: torch.dtype = torch.float64) -> ShardedVAE:
    return random_vae(config, dtype).shard(DeviceMesh.from_group(group, "cpu"))


def encoded(
    group: dist.ProcessGroup, config: VAEConfig, size: tuple[int, int, int], plan: list[int], per_pass: int
) -> np.ndarray:
    chunks = random_video(*size, batch=2).split(plan, dim=2)
    parts = sharded_vae(group, config).encode_stream(chunks, latents_per_pass=per_pass)
    return torch.cat(list(parts), dim=2).numpy()


def decoded(
    group: dist.ProcessGroup, config: VAEConfig, size: tuple[int, int, int], plan: list[int], per_pass: int
) -> np.ndarray:
    chunks = random_latents(config, *size, batch=2).split(plan, dim=2)
    parts = sharded_vae(group, config).decode_stream(chunks, latents_per_pass=per_pass)
    return torch.cat(list(parts), dim=2).numpy()


@pytest.mark.slow
@settings(max_examples=12)
@given(st.data(), small_configs(), st.integers(1, 3), st.integers(1, 3), st.integers(3, 4), st.integers(3, 5))
def test_streams_encode_like_one_process(
    workers: Workers, data: st.DataObject, config: VAEConfig, count: int, latents: int, height: int, width: int
) -> None:
    size = (
        1 + config.temporal_compression * (latents - 1),
        height * config.spatial_compression,
        width * config.spatial_compression,
    )
    plan, per_pass = data.draw(chunk_plans(size[0])), data.draw(st.integers(1, 3))
    expected = random_vae(config).encode(random_video(*size, batch=2))
    for result in workers.run(count, encoded, config, size, plan, per_pass):
        assert relative_difference(torch.from_numpy(result), expected) <= 1e-10


@settings(max_examples=12)
@given(st.data(), small_configs(), st.integers(1, 3), st.integers(1, 3), st.integers(3, 4), st.integers(3, 5))
def test_streams_decode_like_one_process(
    workers: Workers, data: st.DataObject, config: VAEConfig, count: int, latents: int, height: int, width: int
) -> None:
    plan, per_pass = data.draw(chunk_plans(latents)), data.draw(st.integers(1, 3))
    expected = random_vae(config).decode(random_latents(config, latents, height, width, batch=2))
    for result in workers.run(count, decoded, config, (latents, height, width), plan, per_pass):
        assert relative_difference(torch.from_numpy(result), expected) <= 1e-10


def there_and_back(group: dist.ProcessGroup, name: str, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    config = _small(name)
    vae = sharded_vae(group, config, dtype)
    latents = vae.encode(random_video(5, 5 * config.spatial_compression, 3 * config.spatial_compression, dtype=dtype))
    return latents.float().numpy(), vae.decode(latents).float().numpy()


def _small(name: str) -> VAEConfig:
    config = load_config(name)
    return VAEConfig.from_dict({**config.to_dict(), "encoder_width": 8, "decoder_width": 8}, origin="a smaller one")


@pytest.mark.parametrize("name", ["wan2.1", "wan2.2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("count", [2, 3])
def test_presets_in_narrower_dtypes(
    workers: Workers, name: str, dtype: torch.dtype, tolerance: float, count: int
) -> None:
    vae = random_vae(_small(name), dtype)
    side = vae.config.spatial_compression
    expected = vae.encode(random_video(5, 5 * side, 3 * side, dtype=dtype))
    results = workers.run(count, there_and_back, name, dtype)
    for latents, video in results:
        assert relative_difference(torch.from_numpy(latents), expected.float()) <= tolerance
        assert video.shape == (1, 3, 5, 5 * side, 3 * side)
        # All of them have the very same: nobody's part is another's.
        np.testing.assert_array_equal(latents, results[0][0])
        np.testing.assert_array_equal(video, results[0][1])
    back = vae.decode(torch.from_numpy(results[0][0]).to(dtype))
    assert relative_difference(torch.from_numpy(results[0][1]), back.float()) <= tolerance


def part_alone(group: dist.ProcessGroup) -> bool:
    config = small_config()
    vae, latents, mesh = random_vae(config), random_latents(config, 2, 3, 4), DeviceMesh.from_group(group, "cpu")
    own, whole = vae.shard(mesh, gather=False), vae.shard(mesh)
    expected = own.share(3, 4).cut(whole.decode(latents), config.spatial_compression)
    return expected.shape[4] == 4 and torch.equal(own.decode(latents), expected)


def test_a_part_may_stay_where_it_is(workers: Workers) -> None:
    assert all(workers.run(2, part_alone))


def in_rows_and_columns(group: dist.ProcessGroup, shape: tuple[int, ...] | None) -> tuple[np.ndarray | str, int]:
    mesh = None if shape is None else init_device_mesh("cpu", shape)
    config = small_config()
    try:
        sharded = random_vae(config).shard(mesh)
    except UserError as error:
        return str(error), 0
    return sharded.decode(random_latents(config, 2, 3, 5)).numpy(), sharded.share(3, 5).grid.rows


@pytest.mark.parametrize(("shape", "rows"), [((2, 2), 2), ((1, 4), 1), (None, 2)])
def test_a_mesh_says_how_the_picture_is_cut(workers: Workers, shape: tuple[int, ...] | None, rows: int) -> None:
    config = small_config()
    expected = random_vae(config).decode(random_latents(config, 2, 3, 5))
    for result, rows_of_parts in workers.run(4, in_rows_and_columns, shape):
        assert relative_difference(torch.from_numpy(result), expected) <= 1e-10
        assert rows_of_parts == rows


def test_a_mesh_has_one_or_two_dimensions(workers: Workers) -> None:
    for message, _ in workers.run(4, in_rows_and_columns, (2, 2, 1)):
        assert message == "The mesh has 3 dimensions; a picture is cut in rows and columns, so 1 or 2 fit."


def message_of(group: dist.ProcessGroup, mistake: str) -> str:
    config = small_config()
    vae = random_vae(config)
    if mistake == "training":
        vae.train()
    mesh = DeviceMesh.from_group(group, "cpu")
    try:
        sharded = vae.shard(mesh)
        match mistake:
            case "too small":
                sharded.decode(random_latents(config, 1, 1, 1))
            case "does not fit":
                sharded.encode(random_video(1, 3, 4))
            case "one does not fit":
                sharded.encode(random_video(1, 4 - dist.get_rank(), 4))
            case "one has impossible passes in a stream":
                latents = [random_latents(config, 3, 2, 2)]
                list(sharded.decode_stream(latents, latents_per_pass=1 - dist.get_rank()))
            case "one has an impossible plan":
                sharded.plan("decode", frames=5, height=4 - dist.get_rank(), width=4, memory="1GiB")
            case "gradients":
                with torch.enable_grad():
                    sharded.decode(random_latents(config, 1, 2, 2).requires_grad_(True))
            case "autocast":
                with torch.autocast("cpu"):
                    sharded.decode(random_latents(config, 1, 2, 2))
            case "another size":
                list(sharded.encode_stream([random_video(1, 4, 4), random_video(2, 4, 6)]))
            case "another clip":
                sharded.decode(random_latents(config, 1, 2, 2 + dist.get_rank()))
            case "other passes":
                sharded.decode(random_latents(config, 3, 2, 2), latents_per_pass=1 + dist.get_rank())
            case "other result":
                gather = dist.get_rank() == 0
                list(vae.shard(mesh, gather=gather).decode_stream([random_latents(config, 3, 2, 2)]))
            case "nothing":
                list(sharded.decode_stream([]))
    except UserError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("training", "A model in training mode cannot share clips among processes; call its eval() first."),
        ("too small", "2 devices cannot share a picture of 1x1 latents; 1 could."),
        ("does not fit", "The height 3 is not a multiple of 2; 2 or 4 would fit."),
        ("one does not fit", "The height 3 is not a multiple of 2; 2 or 4 would fit."),
        ("one has impossible passes in a stream", "latents_per_pass"),
        ("one has an impossible plan", "The height 3 is not a multiple of 2; 2 or 4 would fit."),
        ("gradients", "Clips in shards pass without gradients; call it inside torch.no_grad(),"),
        ("autocast", "A clip in shards is computed without gradients, autocast and torch.compile;"),
        ("another size", "A chunk is (1, 3, 2, 4, 6), but the ones before it are 4 high and 4 wide."),
        ("another clip", "all must be given the same clip."),
        ("other passes", "1 latents_per_pass"),
        ("other result", "gather=False"),
        ("nothing", "The stream ended without a single frame; push at least one."),
    ],
)
def test_mistakes_are_told_in_every_process(workers: Workers, mistake: str, message: str) -> None:
    for told in workers.run(2, message_of, mistake):
        assert message in told


def outcome_of_uneven_stream(group: dist.ProcessGroup, difference: str) -> tuple[int, str]:
    """Return how many results this rank got of a stream that rank 1 feeds differently, and its error."""
    config, count = small_config(), 0
    odd = dist.get_rank(group) == 1
    chunks = list(random_latents(config, 4, 2, 3).split(1, dim=2))
    if odd and difference == "another length in a later chunk":
        chunks[2] = torch.cat(chunks[2:], dim=2)
    if odd and difference == "an earlier end":
        chunks.pop()

    def given() -> Iterator[torch.Tensor]:
        yield from chunks[:2]
        if odd and difference == "an error while reading":
            raise RuntimeError("no such file")
        yield from chunks[2:]

    results = sharded_vae(group, config).decode_stream(given())
    try:
        for _ in results:
            count += 1
            if odd and difference == "an abandoned stream" and count == 2:
                results.close()
                return count, "abandoned"
    except (RuntimeError, UserError) as error:
        return count, str(error)
    return count, "no error"


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ("another length in a later chunk", "but process 1 is given (1, 3, 2, 2, 3) in torch.float64"),
        ("an earlier end", "but process 1 is given the end"),
        ("an error while reading", "but process 1 is given an error (no such file)"),
        ("an abandoned stream", "but process 1 is given the end of a stream to decode, which was abandoned"),
    ],
)
def test_stream_fed_differently_raises_on_the_other_ranks(workers: Workers, difference: str, message: str) -> None:
    first, second = workers.run(2, outcome_of_uneven_stream, difference)
    assert first[0] == (3 if difference == "an earlier end" else 2)
    assert message in first[1]
    assert second[1] != "no error"
    # The ranks are in step again.
    assert all(workers.run(2, part_alone))


def test_without_processes_there_are_no_shards() -> None:
    with pytest.raises(UserError, match="no process group to share clips with; start the program with torchrun"):
        random_vae(small_config()).shard()
