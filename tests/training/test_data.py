from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.cli.running import read_clip, write_clip
from tests.helpers import small_config
from tests.io.sources import encode, rgb_frames, smooth_pictures
from tests.training.runs import HELD_OUT, Material, small_recipe, stage_values
from wan_vae.errors import UserError
from wan_vae.io.file_names import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from wan_vae.training import Recipe
from wan_vae.training import data as data_module
from wan_vae.training.data import (
    LARGEST_ZOOM_OUT,
    Sources,
    StoredClip,
    TrainingBatches,
    center_crop,
    check_sources,
    clips_too_short,
    ken_burns,
    list_files,
    pass_object,
    random_crop,
    store_clip,
    store_sources,
)
from wan_vae.training.recipe import DataSection

COLORS = (20, 120, 220)


@pytest.fixture(scope="session")
def sources(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return store_sources(small_recipe(material).data, tmp_path_factory.mktemp("store"))


def recipe_of(*stages: dict[str, Any], seed: int = 0) -> Recipe:
    values = {"model": {"preset": "nano"}, "data": {"videos": "clips"}, "stages": list(stages), "seed": seed}
    return Recipe.model_validate(values)


def clip_of(path: Path, frames: np.ndarray) -> StoredClip:
    np.save(path, frames)
    return StoredClip(path.name, path, len(frames))


def ramp(height: int, width: int) -> np.ndarray:
    """Return a photo with the column in red and the row in green."""
    row, column = np.mgrid[:height, :width]
    return np.stack([column, row, np.zeros_like(row)], axis=-1).astype(np.uint8)


def test_store_sources_stores_all_sources_of_a_recipe(sources: Sources) -> None:
    assert [clip.name for clip in sources.videos] == ["a.mkv", "b.mkv", "short.mkv"]
    assert [clip.frames().shape for clip in sources.videos] == [(n, 32, 40, 3) for n in (9, 7, 3)]
    assert [(clip.name, clip.frames().shape) for clip in sources.photos] == [
        ("one.png", (1, 48, 64, 3)),
        ("two.jpg", (1, 48, 64, 3)),
    ]
    assert [clip.name for clip in sources.held_out] == [HELD_OUT]


def test_store_sources_removes_partial_files_of_a_killed_run(material: Material, tmp_path: Path) -> None:
    (tmp_path / ".a.partial-123.npy").touch()
    store_sources(small_recipe(material).data, tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("length", [0, 100, -1])
def test_store_sources_decodes_a_damaged_file_again(length: int, material: Material, tmp_path: Path) -> None:
    def stored() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    data = small_recipe(material).data
    store_sources(data, tmp_path)
    whole = stored()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:length])
    store_sources(data, tmp_path)
    assert stored() == whole


def test_store_sources_holds_out_photos_and_does_not_enlarge_them(material: Material, tmp_path: Path) -> None:
    data = DataSection(videos=material.videos, photos=material.photos, held_out=("two.jpg",), video_short_side=16)
    found = store_sources(data, tmp_path / "frames")
    assert [clip.name for clip in found.held_out] == ["two.jpg"]
    assert [clip.name for clip in found.photos] == ["one.png"]
    assert found.photos[0].frames().shape == (1, 48, 64, 3)
    assert found.videos[0].frames().shape == (9, 16, 20, 3)


def test_store_sources_invalid_held_out_raises(material: Material, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"held_out names other\.mkv, which is not among .*--held-out"):
        store_sources(DataSection(videos=material.videos, held_out=("other.mkv", HELD_OUT)), tmp_path)
    names = tuple(path.name for path in material.photos.iterdir())
    with pytest.raises(UserError, match="held_out names every source"):
        store_sources(DataSection(photos=material.photos, held_out=names), tmp_path)


@settings(max_examples=25)
@given(
    crop=st.integers(1, 24).map(lambda half: 2 * half),
    lengths=st.dictionaries(st.integers(1, 12), st.floats(0.1, 1), min_size=1, max_size=3),
    batch=st.integers(1, 3),
    photo_share=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    per_step=st.integers(1, 3),
    order=st.permutations(range(4)),
)
def test_batches_depend_on_their_number_only(
    sources: Sources,
    crop: int,
    lengths: dict[int, float],
    batch: int,
    photo_share: float,
    seed: int,
    per_step: int,
    order: Sequence[int],
) -> None:
    stage = stage_values(steps=4, crop=crop, lengths=lengths, batch=batch, photo_share=photo_share)
    batches = TrainingBatches(sources, recipe_of(stage, seed=seed), per_step)
    assert len(batches) == 4 * per_step
    straight = [batches[number] for number in range(4)]
    for number in order:
        again = batches[number]
        assert torch.equal(again.video, straight[number].video)
        assert again.origins == straight[number].origins
    for number, one in enumerate(straight):
        length = one.video.shape[2]
        assert length in lengths
        assert length == straight[number // per_step * per_step].video.shape[2]
        assert one.video.shape == (batch, 3, length, crop, crop)
        assert one.video.dtype == torch.float32
        assert one.video.abs().max() < 1 + 1e-5
        assert len(one.origins) == batch
        assert all(origin.startswith(("one.png", "two.jpg")) for origin in one.origins) or photo_share < 1
        assert length <= 7 or not any(origin.startswith("b.mkv") for origin in one.origins)
        assert length <= 3 or not any(origin.startswith("short.mkv") for origin in one.origins)


def test_batches_differ_by_number_and_seed(sources: Sources) -> None:
    stage = stage_values(lengths={3: 1.0}, batch=1)
    several = [TrainingBatches(sources, recipe_of(stage, seed=seed), 1)[number].video for seed in (0, 1) for number in
               range(3)]  # fmt: skip
    assert all(not torch.equal(one, other) for index, one in enumerate(several) for other in several[:index])


def test_batches_have_the_sizes_of_their_stage(sources: Sources) -> None:
    stages = (stage_values(steps=2, crop=8, lengths={1: 1.0}), stage_values(steps=1, crop=12, batch=1, lengths={5: 1}))
    batches = TrainingBatches(sources, recipe_of(*stages), 2)
    shapes = [tuple(batches[number].video.shape) for number in range(len(batches))]
    assert shapes == 4 * [(2, 3, 1, 8, 8)] + 2 * [(1, 3, 5, 12, 12)]


def test_batches_follow_the_shares_of_lengths_and_photos(sources: Sources) -> None:
    stage = stage_values(steps=200, batch=1, crop=4, lengths={1: 3.0 / 4, 3: 1.0 / 4}, photo_share=0.25)
    batches = TrainingBatches(sources, recipe_of(stage), 1)
    drawn = [batches[number] for number in range(200)]
    assert 0.65 < np.mean([batch.video.shape[2] == 1 for batch in drawn]) < 0.85
    assert 0.15 < np.mean([batch.origins[0].startswith(("one", "two")) for batch in drawn]) < 0.35


def test_batches_use_photos_if_no_clip_is_long_enough(sources: Sources) -> None:
    stage = stage_values(lengths={11: 1.0}, photo_share=0.0)
    batch = TrainingBatches(sources, recipe_of(stage), 1)[0]
    assert all(origin.startswith(("one.png", "two.jpg")) for origin in batch.origins)


def test_batches_with_too_long_lengths_raise_at_construction(sources: Sources) -> None:
    stages = (stage_values(), stage_values(name="long ones", lengths={5: 0.9, 11: 0.1}))
    without_photos = Sources(sources.videos, (), ())
    with pytest.raises(UserError, match="no training clip has 11 frames, which stage long ones asks for"):
        TrainingBatches(without_photos, recipe_of(*stages), 1)
    TrainingBatches(without_photos, recipe_of(stage_values(lengths={9: 1.0, 11: 0.0})), 1)


@settings(max_examples=40)
@given(
    height=st.integers(8, 60),
    width=st.integers(8, 60),
    crop=st.integers(4, 40),
    length=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_random_crop_returns_successive_frames_of_the_described_square(
    height: int, width: int, crop: int, length: int, seed: int
) -> None:
    clip = np.repeat(ramp(height, width)[None], 7, axis=0)
    clip[..., 2] = 30 * np.arange(7)[:, None, None]
    levels, origin = random_crop(clip, length, crop, np.random.default_rng(seed))
    assert levels.shape == (3, length, crop, crop)
    first, side, left, top = (int(word) for word in origin.replace(",", " ").split() if word.isdigit())
    assert crop <= side <= LARGEST_ZOOM_OUT * crop or side == min(height, width)
    assert 0 <= left <= width - side
    assert 0 <= top <= height - side
    for frame in range(length):
        torch.testing.assert_close(levels[2, frame], torch.full((crop, crop), 30.0 * (first + frame)))
    # The ramps show the position of the crop, and that it is not mirrored.
    for channel, start in ((0, left), (1, top)):
        assert levels[channel].mean().item() == pytest.approx(start + (side - 1) / 2, abs=0.5)
    assert (levels[0].diff(dim=-1) > -1e-3).all()
    assert (levels[1].diff(dim=-2) > -1e-3).all()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(8, 80),
    width=st.integers(8, 80),
    crop=st.integers(4, 32),
    length=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_ken_burns_keeps_a_uniform_photo(height: int, width: int, crop: int, length: int, seed: int) -> None:
    photo = np.full((height, width, 3), COLORS, dtype=np.uint8)
    levels, _ = ken_burns(photo, length, crop, np.random.default_rng(seed), np.ones(2))
    expected = torch.tensor(COLORS, dtype=torch.float32).view(3, 1, 1, 1).expand(3, length, crop, crop)
    torch.testing.assert_close(levels, expected, rtol=0, atol=0.01)


@settings(max_examples=40)
@given(crop=st.integers(8, 32), more=st.tuples(st.integers(0, 150), st.integers(0, 150)), seed=st.integers(0, 999))
def test_ken_burns_view_lies_inside_the_photo(crop: int, more: tuple[int, int], seed: int) -> None:
    height, width = crop + more[0], crop + more[1]
    levels, origin = ken_burns(ramp(height, width), 1, crop, np.random.default_rng(seed), np.ones(2))
    scale = float(origin.split(" times")[0])
    for channel, axis, side in ((0, -1, width), (1, -2, height)):
        # Pixels of the crop are `scale` photo pixels apart if none is reflected. The outermost ones are left out: the
        # antialiasing filter flattens them at edges of the photo.
        steps = levels[channel].diff(dim=axis).narrow(axis, 2, crop - 5)
        torch.testing.assert_close(steps, torch.full_like(steps, scale), rtol=0.15, atol=0)
        assert levels[channel].min() >= 0
        assert levels[channel].max() <= side - 1 + 1e-3


def test_ken_burns_moves_at_the_given_speed() -> None:
    checked = 0
    for seed in range(30):
        levels, origin = ken_burns(ramp(200, 200), 5, 8, np.random.default_rng(seed), np.array([1.5, -0.5]))
        if levels[:2].min() > 15 and levels[:2].max() < 185:  # away from the edges, where the picture is reflected
            steps = levels[:2].mean(dim=(-2, -1)).diff(dim=1) / float(origin.split(" times")[0])
            # PyTorch's bicubic kernel (a = -0.75) does not keep ramps exactly straight.
            torch.testing.assert_close(steps, torch.tensor([[1.5], [-0.5]]).expand(-1, 4), rtol=0, atol=0.1)
            checked += 1
    assert checked >= 5


def test_pass_object_covers_a_part_that_moves() -> None:
    photo = np.full((64, 64, 3), 255, dtype=np.uint8)
    moved = 0
    for seed in range(20):
        levels = pass_object(torch.zeros(3, 5, 32, 32), photo, np.random.default_rng(seed))
        assert levels.min() >= 0
        assert levels.max() <= 255 + 1e-3
        covered = (levels[0] / 255).mean(dim=(-2, -1))  # share by frame
        assert covered.max() < 0.6
        columns = torch.arange(32.0)
        center = [(frame.sum(dim=0) * columns).sum() / frame.sum() for frame in levels[0] if frame.sum() > 0]
        moved += len(center) > 1 and bool(abs(center[-1] - center[0]) > 1)
    assert moved >= 10


def test_batches_with_fast_share_skip_frames(tmp_path: Path) -> None:
    frames = np.full((30, 16, 16, 3), 1, np.uint8) * (7 * np.arange(30, dtype=np.uint8))[:, None, None, None]
    clips = Sources((clip_of(tmp_path / "ramp.npy", frames),), (), ())
    steps: dict[float, set[int]] = {}
    for share in (0.0, 1.0):
        stage = stage_values(steps=20, lengths={5: 1.0}, fast_share=share)
        batches = TrainingBatches(clips, recipe_of(stage), 1)
        levels = [127.5 * (batches[number].video + 1) for number in range(20)]
        steps[share] = {
            round(step) for video in levels for step in video.mean(dim=(1, 3, 4)).diff(dim=1).flatten().tolist()
        }
    assert steps[0.0] == {7}
    assert steps[1.0] == {7, 14, 21, 28}


def test_batches_with_fast_share_keep_their_sizes(sources: Sources) -> None:
    slow, fast = (
        TrainingBatches(sources, recipe_of(stage_values(steps=30, lengths={3: 1.0}, fast_share=share)), 1)
        for share in (0.0, 1.0)
    )
    assert all(fast[number].video.shape == slow[number].video.shape for number in range(4))
    video = fast[0].video
    assert torch.isfinite(video).all()
    assert video.abs().max() <= 1
    assert torch.equal(video, fast[0].video)


def test_center_crop_fits_the_model(sources: Sources, tmp_path: Path) -> None:
    config = small_config(width_multipliers=(1, 1, 1), temporal_downsample=(True, True), patch_size=2)
    frames = np.random.default_rng(0).integers(0, 256, (8, 35, 29, 3), dtype=np.uint8)
    (name, fitted), (_, short) = center_crop([clip_of(tmp_path / "odd.npy", frames), sources.videos[2]], 7, config)
    assert name == "odd.npy"
    assert np.array_equal(fitted, frames[:5, 1:33, 2:26])
    assert short.shape == (1, 32, 40, 3)


def test_center_crop_of_a_model_of_pictures_is_one_frame(sources: Sources) -> None:
    ((_, frames),) = center_crop(sources.videos[:1], 17, small_config(images_only=True))
    assert len(frames) == 1


@pytest.mark.parametrize(("kind", "side"), [("videos", 2), ("photos", 2), ("held_out", 32)])
def test_check_sources_names_the_one_that_is_too_small(
    kind: str, side: int, sources: Sources, tmp_path: Path, material: Material
) -> None:
    recipe = small_recipe(material, lpips={"backbone": str(material.backbone)})
    check_sources(sources, recipe, small_config())
    small = clip_of(tmp_path / "small.npy", np.zeros((9, side - 1, 40, 3), np.uint8))
    with pytest.raises(UserError, match=rf"small\.npy is 40x{side - 1}, and sides of {side} are needed"):
        check_sources(replace(sources, **{kind: (small,)}), recipe, small_config())


def test_clips_too_short_are_those_below_the_longest_length_that_has_a_share(sources: Sources) -> None:
    def names(lengths: dict[int, float]) -> list[str]:
        stage = recipe_of(stage_values(lengths=lengths)).stages[0]
        return [clip.name for clip in clips_too_short(sources, stage)]

    assert names({3: 1.0, 99: 0.0}) == []
    assert names({3: 0.5, 9: 0.5}) == ["b.mkv", "short.mkv"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mkv", frames=19, width=40, height=32, fps=Fraction(25))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def stored(source: Path, store: Path, *, short_side: int = 32, most: int = 600, enlarge: bool = True) -> StoredClip:
    return store_clip(source, store, short_side=short_side, most_frames=most, enlarge=enlarge)


def test_store_clip_unscaled_stores_the_exact_frames(clip: Path, store: Path) -> None:
    entry = stored(clip, store)
    assert entry.name == "clip.mkv"
    assert entry.frames().dtype == np.uint8
    assert np.array_equal(entry.frames(), read_clip(clip))
    assert list(store.iterdir()) == [entry.path]


def test_store_clip_decodes_only_once(clip: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stored(clip, store)
    written = first.path.stat().st_mtime_ns

    def no_second_time(*arguments: object, **options: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(data_module, "open_clip", no_second_time)
        assert stored(clip, store) == first
        with pytest.raises(AssertionError, match="decoded again"):
            stored(clip, store, short_side=16)
    assert first.path.stat().st_mtime_ns == written
    write_clip(clip, frames=3, width=40, height=32, fps=Fraction(25))
    assert len(stored(clip, store).frames()) == 3


def test_store_clip_scales_to_the_short_side(tmp_path: Path, store: Path) -> None:
    pictures = smooth_pictures(2, 48, 64)
    clip = encode(tmp_path / "smooth.mkv", rgb_frames(pictures))
    half = stored(clip, store, short_side=24).frames()
    assert half.shape == (2, 24, 32, 3)
    means = pictures.reshape(2, 24, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(half - means).mean() < 1
    assert stored(clip, store, short_side=96).frames().shape == (2, 96, 128, 3)
    assert stored(clip, store, short_side=96, enlarge=False).frames().shape == (2, 48, 64, 3)


def test_store_clip_stores_at_most_most_frames(clip: Path, store: Path) -> None:
    kept = stored(clip, store, most=17).frames()
    assert np.array_equal(kept, read_clip(clip)[:17])


def test_store_clip_photo_is_a_clip_of_one_frame(tmp_path: Path, store: Path) -> None:
    picture = smooth_pictures(1, 20, 30)
    Image.fromarray(picture[0]).save(tmp_path / "photo.png")
    assert np.array_equal(stored(tmp_path / "photo.png", store, enlarge=False).frames(), picture)
    deep = np.full((20, 30), 40000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.unique(stored(tmp_path / "deep.png", store, enlarge=False).frames()), [156])


def test_store_clip_failing_leaves_no_file(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.mp4"):
        stored(tmp_path / "text.mp4", store)
    clip = write_clip(tmp_path / "clip.mkv", frames=3, width=40, height=32, fps=Fraction(25))

    def interrupted(frames: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data_module, "eight_bits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stored(clip, store)
    assert not any(store.iterdir())


def test_write_array_with_fewer_frames_than_announced_fixes_the_header(store: Path) -> None:
    pictures = smooth_pictures(5, 8, 8)
    data_module._write_array(store / "a.npy", (7, 8, 8, 3), iter([pictures[:3], pictures[3:]]))
    assert np.array_equal(np.load(store / "a.npy"), pictures)


def test_find_sources_searches_folders(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("b.MP4", "a.mkv", "inner/c.gif", "photo.png", "notes.txt", "._b.MP4", "inner/.d.partial.gif"):
        (tmp_path / name).touch()
    assert list_files(None, VIDEO_SUFFIXES) == []
    found = list_files(tmp_path, VIDEO_SUFFIXES)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.mkv", "b.MP4", str(Path("inner/c.gif"))]
    assert list_files(tmp_path, IMAGE_SUFFIXES) == [tmp_path / "photo.png"]
    assert list_files(tmp_path / "notes.txt", VIDEO_SUFFIXES) == [tmp_path / "notes.txt"]
    with pytest.raises(UserError, match=r"nowhere is neither a file nor a folder"):
        list_files(tmp_path / "nowhere", VIDEO_SUFFIXES)
    with pytest.raises(UserError, match=r"inner holds no file ending in \.avif"):
        list_files(tmp_path / "inner", IMAGE_SUFFIXES)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"link\.png is a link to a file that does not exist"):
        list_files(tmp_path, IMAGE_SUFFIXES)
