"""Parts of clips and buckets."""

from itertools import accumulate, repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wan_vae.dataset.parts import Extract, Part, bucket_sizes, choose_bucket, musubi_frames, to_bucket
from wan_vae.errors import ClipError, UserError


@pytest.mark.parametrize(
    ("extract", "parts"),
    [
        (Extract("head", (1, 9, 30)), [Part(0, 1), Part(0, 9)]),
        (Extract("head", (11,)), [Part(0, 9)]),
        (Extract("chunk", (9,)), [Part(0, 9), Part(9, 9)]),
        (Extract("slide", (17,), stride=2), [Part(0, 17), Part(2, 17)]),
        (Extract("uniform", (9,), samples=3), [Part(0, 9), Part(5, 9), Part(11, 9)]),
        (Extract("uniform", (9,)), [Part(0, 9)]),
        (Extract("full"), [Part(0, 17)]),
        (Extract("full", most_frames=14), [Part(0, 13)]),
        (Extract("chunk", (25,)), []),
    ],
)
def test_parts_of_a_clip_of_20_frames(extract: Extract, parts: list[Part]) -> None:
    assert extract.parts(20, 4) == parts


@given(
    st.sampled_from(["head", "chunk", "slide", "uniform", "full"]),
    st.lists(st.integers(1, 90), min_size=1, max_size=3),
    st.integers(1, 120),
    st.integers(1, 9),
)
def test_parts_are_within_the_clip_sorted_and_whole_latents(
    extraction: str, targets: list[int], frames: int, number: int
) -> None:
    extract = Extract(extraction, tuple(targets), stride=number, samples=number)  # type: ignore[arg-type]
    parts = extract.parts(frames, 4)
    assert parts == sorted(set(parts))
    for part in parts:
        assert 0 <= part.start <= part.start + part.frames <= frames
        assert part.frames % 4 == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"extraction": "middle"}, "extraction is 'middle'; it must be head, chunk"),
        ({"extraction": "chunk"}, "needs the lengths of parts"),
        ({"target_frames": (0,)}, "A length of target_frames is 0; it must be a whole number above 0"),
        ({"target_frames": 17}, r"target_frames is 17; it must be the lengths of parts, such as \(17,\)"),
        ({"extraction": "slide", "target_frames": (5,), "stride": 1.5}, r"stride is 1\.5; it must be a whole number"),
        ({"extraction": "slide", "target_frames": (5,), "stride": 0}, "stride is 0"),
    ],
)
def test_extract_of_impossible_values_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Extract(**arguments)  # type: ignore[arg-type]


def test_bucket_sizes_of_an_area() -> None:
    sizes = bucket_sizes(64, 64)
    assert sizes == sorted(set(sizes))
    assert (64, 64) in sizes
    assert (32, 128) in sizes
    assert all(width % 16 == height % 16 == 0 for width, height in sizes)


@given(st.integers(16, 500), st.integers(16, 500))
def test_choose_bucket_without_upscaling_keeps_small_pictures(width: int, height: int) -> None:
    chosen = choose_bucket(width, height, (256, 256), upscale=False)
    if width * height <= 256 * 256:
        assert chosen == (width // 16 * 16, height // 16 * 16)
    else:
        assert chosen in bucket_sizes(256, 256)


def test_choose_bucket_takes_the_nearest_aspect() -> None:
    assert choose_bucket(1920, 1080, (832, 480), upscale=True) in bucket_sizes(832, 480)
    width, height = choose_bucket(1920, 1080, (832, 480), upscale=True)
    assert abs(width / height - 16 / 9) < 0.1
    assert choose_bucket(100, 100, (64, 64), upscale=True) == (64, 64)


def test_to_bucket_cuts_the_center_and_keeps_what_fits() -> None:
    picture = np.zeros((32, 96, 3), np.uint8)
    picture[:, 32:64] = 200
    assert to_bucket(picture, (96, 32)) is picture
    assert (to_bucket(picture, (32, 32)) == 200).all()


@pytest.mark.parametrize(
    ("source_fps", "first"),
    [
        (32.0, [0, 2, 4, 6, 8, 10, 12, 14]),
        (16.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (10.0, [0, 1, 2, 3, 4, 5, 6, 7]),  # none is repeated
        (29.97, [0, 2, 4, 6, 8, 10, 12, 14, 15, 17]),
        (24.0, [0, 2, 3, 5, 7, 8, 9, 11]),  # 6 * 2/3 is 4, but the sum of six float64s is less
        (30.0, [0, 2, 4, 6, 8, 10, 12, 14, 16, 17]),  # as for 15 * 8/15
    ],
)
def test_musubi_frames_are_the_first_of_each_sixteenth_of_a_second(source_fps: float, first: list[int]) -> None:
    assert musubi_frames(100, source_fps)[: len(first)] == first


@given(st.floats(1, 240), st.integers(1, 600))
def test_musubi_frames_sum_times_in_float64(source_fps: float, frames: int) -> None:
    numbers = [int(time) for time in accumulate(repeat(16.0 / source_fps, frames - 1), initial=0.0)]
    assert musubi_frames(frames, source_fps) == [numbers.index(number) for number in sorted(set(numbers))]


@pytest.mark.parametrize(
    ("resolution", "size", "bucket"),
    [
        # Of an area of 399360, int(631.9) = 631: sides from 304 to 640 in steps of 16, the others 399360 // side.
        ((832, 480), (1920, 1080), (832, 480)),  # 1.733 is nearer to 1.778 than 848 / 464 = 1.828
        ((832, 480), (1080, 1920), (480, 832)),
        ((832, 480), (1850, 1000), (848, 464)),
        ((832, 480), (640, 640), (624, 640)),
        ((832, 480), (4000, 100), (1312, 304)),
        # Of 6144: int(78.4) = 78 and 39 // 16 * 16 = 32, so (32, 192), (48, 128), (64, 96), (80, 64) and swapped.
        ((96, 64), (160, 90), (96, 64)),
        ((96, 64), (90, 160), (64, 96)),
        ((96, 64), (128, 128), (64, 80)),  # 0.8 is nearer to 1 than 80 / 64 = 1.25
        ((96, 64), (1000, 10), (192, 32)),
    ],
)
def test_choose_bucket_as_computed_by_hand(
    resolution: tuple[int, int], size: tuple[int, int], bucket: tuple[int, int]
) -> None:
    assert choose_bucket(*size, resolution, upscale=True) == bucket


def test_to_bucket_of_a_line_is_refused_before_it_is_enlarged() -> None:
    with pytest.raises(ClipError, match="16384x1 is too far from the shape of 1312x304 to be cut to it"):
        to_bucket(np.zeros((1, 16384, 3), np.uint8), (1312, 304))


def test_to_bucket_rounds_means_as_opencv() -> None:
    quarters = np.zeros((4, 6, 1), np.uint8)
    quarters[0, 0], quarters[0, 2], quarters[3, 5] = 1, 2, 6
    assert to_bucket(quarters, (3, 2))[..., 0].tolist() == [[0, 1, 0], [0, 0, 2]]  # 0.25, 0.5 and 1.5 of 2x2 pixels
    sixteenths = np.zeros((4, 8, 1), np.uint8)
    sixteenths[0, 0], sixteenths[0, 4] = 8, 24
    assert to_bucket(sixteenths, (2, 1))[..., 0].tolist() == [[0, 2]]  # 0.5 and 1.5 of 4x4 pixels
    thirds = np.array([0, 30, 90], np.uint8)[:, None, None].repeat(3, axis=1)
    assert to_bucket(thirds, (2, 2))[..., 0].tolist() == [[10, 10], [70, 70]]  # (0 + 15) / 1.5 and (15 + 90) / 1.5


@pytest.mark.parametrize("size", [(16, 16), (48, 32), (32, 48)])
def test_to_bucket_reduces_by_the_mean_over_areas(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    factor = 96 // max(size)
    means = picture.reshape(96 // factor, factor, 96 // factor, factor, 3).mean(axis=(1, 3))
    left, top = (means.shape[1] - size[0]) // 2, (means.shape[0] - size[1]) // 2
    expected = means[top : top + size[1], left : left + size[0]]
    assert np.abs(to_bucket(picture, size) - expected).max() <= 0.5001


def test_to_bucket_enlarges_by_lanczos() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((48, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(to_bucket(picture, (48, 32)), expected)
