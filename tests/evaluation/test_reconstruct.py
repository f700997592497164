import numpy as np
import pytest
import torch

from tests.helpers import random_vae, small_config
from wan_vae.evaluation.reconstruct import reconstruct_frames
from wan_vae.io.frames import tensors_to_frames


@pytest.mark.parametrize("count", [1, 2, 6, 7])
@pytest.mark.parametrize("upscale", [1, 2])
def test_each_frame_comes_with_its_source(count: int, upscale: int) -> None:
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
