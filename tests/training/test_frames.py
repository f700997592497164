from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.running import read_clip, write_clip
from tests.io.sources import encode, rgb_frames, smooth_pictures
from wan_vae.errors import UserError
from wan_vae.training import data as frames
from wan_vae.training.data import PHOTO_SUFFIXES, VIDEO_SUFFIXES, StoredClip, find_sources, store_clip


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mkv", frames=19, width=40, height=32, fps=Fraction(25))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def stored(source: Path, store: Path, *, short_side: int = 32, most: int = 600, enlarge: bool = True) -> StoredClip:
    return store_clip(source, store, short_side=short_side, most_frames=most, enlarge=enlarge)


def test_an_unscaled_clip_comes_back(clip: Path, store: Path) -> None:
    entry = stored(clip, store)
    assert entry.name == "clip.mkv"
    assert entry.frames().dtype == np.uint8
    assert np.array_equal(entry.frames(), read_clip(clip))
    assert list(store.iterdir()) == [entry.path]


def test_it_is_decoded_once(clip: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stored(clip, store)
    written = first.path.stat().st_mtime_ns

    def no_second_time(*arguments: object, **options: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(frames, "open_clip", no_second_time)
        assert stored(clip, store) == first
        with pytest.raises(AssertionError, match="decoded again"):
            stored(clip, store, short_side=16)
    assert first.path.stat().st_mtime_ns == written
    write_clip(clip, frames=3, width=40, height=32, fps=Fraction(25))
    assert len(stored(clip, store).frames()) == 3


def test_it_is_scaled_to_its_short_side(tmp_path: Path, store: Path) -> None:
    pictures = smooth_pictures(2, 48, 64)
    clip = encode(tmp_path / "smooth.mkv", rgb_frames(pictures))
    half = stored(clip, store, short_side=24).frames()
    assert half.shape == (2, 24, 32, 3)
    means = pictures.reshape(2, 24, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(half - means).mean() < 1
    assert stored(clip, store, short_side=96).frames().shape == (2, 96, 128, 3)
    assert stored(clip, store, short_side=96, enlarge=False).frames().shape == (2, 48, 64, 3)


def test_only_the_first_frames_are_kept(clip: Path, store: Path) -> None:
    kept = stored(clip, store, most=17).frames()
    assert np.array_equal(kept, read_clip(clip)[:17])


def test_a_photo_is_a_clip_of_one_frame(tmp_path: Path, store: Path) -> None:
    picture = smooth_pictures(1, 20, 30)
    Image.fromarray(picture[0]).save(tmp_path / "photo.png")
    assert np.array_equal(stored(tmp_path / "photo.png", store, enlarge=False).frames(), picture)
    deep = np.full((20, 30), 40000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.unique(stored(tmp_path / "deep.png", store, enlarge=False).frames()), [156])


def test_a_damaged_source_leaves_nothing(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.mp4"):
        stored(tmp_path / "text.mp4", store)
    clip = write_clip(tmp_path / "clip.mkv", frames=3, width=40, height=32, fps=Fraction(25))

    def interrupted(frames: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(frames, "eight_bits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stored(clip, store)
    assert not any(store.iterdir())


def test_fewer_frames_than_announced(store: Path) -> None:
    pictures = smooth_pictures(5, 8, 8)
    frames._write(store / "a.npy", 7, (8, 8), iter([pictures[:3], pictures[3:]]))
    assert np.array_equal(np.load(store / "a.npy"), pictures)


def test_sources_are_found_in_folders(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("b.MP4", "a.mkv", "inner/c.gif", "photo.png", "notes.txt"):
        (tmp_path / name).touch()
    assert find_sources(None, VIDEO_SUFFIXES) == []
    found = find_sources(tmp_path, VIDEO_SUFFIXES)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.mkv", "b.MP4", str(Path("inner/c.gif"))]
    assert find_sources(tmp_path, PHOTO_SUFFIXES) == [tmp_path / "photo.png"]
    assert find_sources(tmp_path / "notes.txt", VIDEO_SUFFIXES) == [tmp_path / "notes.txt"]
    with pytest.raises(UserError, match=r"nowhere is neither a file nor a folder"):
        find_sources(tmp_path / "nowhere", VIDEO_SUFFIXES)
    with pytest.raises(UserError, match=r"inner holds no file ending in \.png"):
        find_sources(tmp_path / "inner", PHOTO_SUFFIXES)
