import numpy as np
import pytest
import torch

from tests.helpers import random_vae, small_config
from wan_vae.evaluation.reconstruct import GAP, reconstruct_frames, side_by_side, side_by_side_width
from wan_vae.io.frames import tensors_to_frames


@pytest.mark.parametrize("count", [1, 2, 6, 7])
@pytest.mark.parametrize("upscale", [1, 2])
def test_reconstruct_frames_pairs_each_frame_with_its_source(count: int, upscale: int) -> None:
    vae = random_vae(small_config(output_upscale=upscale), torch.float32)
    source = np.random.default_rng(0).integers(0, 256, (count, 8, 10, 3), dtype=np.uint8)
    chunks = [source[start : start + 4] for start in range(0, count, 4)]
    pairs = list(reconstruct_frames(vae, chunks, 10 * upscale, 8 * upscale))
    assert np.array_equal(np.stack([original for original, _ in pairs]), source)

    video = torch.from_numpy(source).permute(3, 0, 1, 2)[None] / 127.5 - 1
    padded = torch.cat([video, video[:, :, -1:]], dim=2) if count % 2 == 0 else video
    (whole,) = tensors_to_frames([vae.decode(vae.encode(padded))], 10 * upscale, 8 * upscale, vae.device)
    by_hand = whole[:count].astype(int)
    assert np.abs(np.stack([decoded for _, decoded in pairs]) - by_hand).max() <= 1


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("scale", [1, 2])
def test_side_by_side_has_the_source_left_and_the_reconstruction_right(scale: int) -> None:
    source, reconstruction = noise(6, 9), noise(6 * scale, 9 * scale, seed=1)
    pair = side_by_side(source, reconstruction)
    width = 9 * scale
    assert pair.shape == (6 * scale, side_by_side_width(width), 3)
    for row in range(scale):
        for column in range(scale):
            assert np.array_equal(pair[row::scale, column:width:scale], source)
    assert np.array_equal(pair[:, width + GAP :], reconstruction)
    gap = pair[:, width : width + GAP]
    assert (gap == gap[0, 0, 0]).all()
