import numpy as np
import pytest

from wan_vae.evaluation.reconstruct import GAP, eight_bits, side_by_side, side_by_side_width


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_source_is_left_and_the_reconstruction_right(scale: int) -> None:
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


def test_sixteen_bits_are_rounded() -> None:
    deep = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(eight_bits(deep), np.rint(deep / 257).astype(np.uint8))
    assert np.array_equal(eight_bits(noise(2, 2)), noise(2, 2))
