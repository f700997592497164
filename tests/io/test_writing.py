"""What was written comes back."""

import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.io.sources import Array, psnr, read_all, smooth_pictures
from wan_vae.errors import ClipError, UserError
from wan_vae.io import AudioSource, Color, create_clip, frames_to_tensor, read_clip, write_clip

BT709 = Color("bt709", False, 1, 1)
RATES = [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(16), Fraction(25), Fraction(60), Fraction(25, 2)]


def write(path: Path, pictures: Array, fps: Fraction = Fraction(25), color: Color = BT709, **options: Any) -> None:
    height, width = pictures.shape[1:3]
    with create_clip(path, width=width, height=height, fps=fps, color=color, **options) as writer:
        half = (len(pictures) + 1) // 2
        writer.write(pictures[:half])
        writer.write(pictures[half:])


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 50),
    count=st.integers(2, 12),
    fps=st.sampled_from(RATES),
    suffix=st.sampled_from([".mp4", ".mov", ".mkv", ".avi", ".webm"]),
    lossless=st.booleans(),
)
def test_video_keeps_size_count_and_rate(
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    height: int,
    count: int,
    fps: Fraction,
    suffix: str,
    lossless: bool,
) -> None:
    path = tmp_path_factory.mktemp("video") / f"a{suffix}"
    pictures = smooth_pictures(count, height, width)
    write(path, pictures, fps, lossless=lossless)
    info, back = read_all(path)
    assert back.shape == pictures.shape
    assert info.frames == count
    assert info.fps == fps
    if lossless:
        assert (back == pictures).all()
    elif min(width, height) >= 16:
        assert psnr(back, pictures) > 30
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@settings(deadline=None, max_examples=25)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 50),
    count=st.integers(2, 12),
    fps=st.sampled_from([Fraction(10), Fraction(25), Fraction(50), Fraction(24), Fraction(30)]),
    suffix=st.sampled_from([".gif", ".webp"]),
)
def test_animations_keep_size_count_and_nearest_rate(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, count: int, fps: Fraction, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("animation") / f"a{suffix}"
    pictures = smooth_pictures(count, height, width)
    write(path, pictures, fps)
    info, back = read_all(path)
    assert back.shape == pictures.shape
    assert info.frames == count
    tick = Fraction(1, 100) if suffix == ".gif" else Fraction(1, 1000)
    assert abs(count / info.fps - count / fps) <= count * tick / 2 + tick
    assert not info.variable_frame_rate
    if min(width, height) >= 16:
        assert psnr(back, pictures) > 28


def test_gif_chooses_colors_for_each_frame(tmp_path: Path) -> None:
    pictures = np.zeros((3, 16, 16, 3), np.uint8)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for channel in range(3):
        pictures[channel, ..., channel] = ramp
    write(tmp_path / "a.gif", pictures)
    assert np.abs(read_all(tmp_path / "a.gif")[1].astype(int) - pictures).max() <= 4


@pytest.mark.parametrize("name", ["a.webp", "folder", "a.png", "a.bmp", "a.tiff"])
def test_lossless_pictures(tmp_path: Path, name: str) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4 if name in ("a.webp", "folder") else 1, 9, 13, 3), np.uint8)
    write(tmp_path / name, pictures, lossless=True)
    assert (read_all(tmp_path / name)[1] == pictures).all()
    if name == "folder":
        assert sorted(file.name for file in (tmp_path / name).iterdir())[0] == "000000.png"


def test_webp_repeats_for_ever(tmp_path: Path) -> None:
    write(tmp_path / "a.webp", smooth_pictures(3, 20, 20))
    with Image.open(tmp_path / "a.webp") as image:
        assert image.info["loop"] == 0


def test_jpeg_is_close(tmp_path: Path) -> None:
    pictures = smooth_pictures(1, 40, 50)
    write(tmp_path / "a.jpg", pictures)
    assert psnr(read_all(tmp_path / "a.jpg")[1], pictures) > 38


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_pixel_aspect_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str) -> None:
    write(tmp_path / f"a{suffix}", smooth_pictures(2, 32, 32), pixel_aspect=Fraction(4, 3))
    assert read_all(tmp_path / f"a{suffix}")[0].pixel_aspect == Fraction(4, 3)
    assert not caplog.records
    write(tmp_path / "a.webm", smooth_pictures(2, 32, 32), pixel_aspect=Fraction(4, 3))
    assert "4/3 as wide as high" in caplog.text


@pytest.mark.parametrize("name", ["folder", "a.png", "a.gif", "a.webp"])
def test_a_format_without_pixel_aspect_and_color_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    hdr = Color("bt2020", False, primaries=9, transfer=16)
    write(tmp_path / name, smooth_pictures(1, 32, 32), color=hdr, pixel_aspect=Fraction(4, 3), fps=Fraction(10))
    aspect, color = (record.message for record in caplog.records)
    assert f"{name} cannot say that its pixels are 4/3 as wide as high" in aspect
    assert f"{name} cannot say that its colors are not the usual ones (primaries 9, transfer 16)" in color


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".webm"])
@pytest.mark.parametrize("lossless", [False, True])
def test_primaries_and_transfer_come_back_or_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, lossless: bool
) -> None:
    hdr = Color("bt2020", False, primaries=9, transfer=16)
    write(tmp_path / f"a{suffix}", smooth_pictures(2, 32, 32), color=hdr, lossless=lossless)
    color = read_all(tmp_path / f"a{suffix}")[0].color
    assert ((color.primaries, color.transfer) == (9, 16)) != ("primaries 9" in caplog.text)


@pytest.mark.parametrize(
    ("name", "side"), [("a.webp", 2**14), ("a.jpg", 65501), ("a.mp4", 2**14 + 1), ("a.gif", 2**14 + 1)]
)
def test_create_clip_of_too_long_a_side_is_refused(tmp_path: Path, name: str, side: int) -> None:
    with pytest.raises(
        ClipError, match=f"cannot be {side}x16; with this extension, sides have up to {side - 1} pixels"
    ):
        create_clip(tmp_path / name, width=side, height=16, fps=25)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif", ".webp"])
@pytest.mark.parametrize("lossless", [False, True])
def test_rates_that_are_not_refused_come_back(tmp_path: Path, suffix: str, lossless: bool) -> None:
    if lossless and suffix == ".gif":
        pytest.skip("a GIF is never lossless")
    pictures = smooth_pictures(5, 32, 32)
    refused = []
    for fps in map(Fraction, ("1/65536", "1/1000", "1/600", "1/7", "1", "24000/1001", "120", "1000", "5000", "65536")):
        path = tmp_path / f"{fps.numerator}_{fps.denominator}{suffix}"
        try:
            write(path, pictures, fps, lossless=lossless)
        except ClipError as error:
            refused.append(fps)
            assert re.search("cannot hold .* frames a second", str(error))  # noqa: PT017
            continue
        info = read_all(path)[0]
        near = Fraction(1, 20) if suffix in (".gif", ".webp") else 0
        assert abs(info.fps - fps) <= near * fps, (fps, info.fps)
        assert not info.variable_frame_rate
    assert len(refused) <= {".gif": 6, ".webp": 3, ".mp4": 0, ".mov": 0}.get(suffix, 2)


def test_odd_sizes_in_h264_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.mp4", smooth_pictures(2, 32, 33))
    assert [r.message for r in caplog.records if "33x32 has an odd side" in r.message and "yuv444p" in r.message]
    caplog.clear()
    write(tmp_path / "a.webm", smooth_pictures(2, 32, 33))
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.xyz", {}, r"unknown extension; known are \.mp4.*folder"),
        ("a.gif", {"lossless": True}, r"cannot be lossless; these can: .*\.mkv"),
        ("a.jpg", {"lossless": True}, r"cannot be lossless.*\.png"),
        ("a.gif", {"fps": Fraction(60)}, "60 frames a second; give from 0.0015.* to 50, or name an .mp4"),
        ("a.gif", {"fps": Fraction(1, 700)}, "cannot hold 0.00142857 frames a second"),
        ("a.webp", {"fps": Fraction(1, 20000)}, "cannot hold 5e-05 frames a second"),
        ("a.mkv", {"fps": Fraction(5000)}, "cannot hold 5000 frames a second; give from .* to 1000, or name an .mp4"),
        ("a.webm", {"fps": Fraction(1001)}, "cannot hold 1001 frames a second"),
        ("a.mp4", {"fps": Fraction(0)}, "must be above 0"),
        ("there.mp4", {}, "is a folder; name a file"),
        ("full", {}, "not an empty folder"),
    ],
)
def test_create_clip_of_an_impossible_output_is_refused(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "there.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ClipError, match=message):
        write(tmp_path / name, smooth_pictures(1, 8, 8), **options)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "folder", "a.png"])
def test_nothing_is_left_after_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()

    def interrupted() -> None:
        with create_clip(tmp_path / name, width=16, height=16, fps=Fraction(25), color=BT709) as writer:
            writer.write(smooth_pictures(1, 16, 16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with (
        pytest.raises(ClipError, match="no frames"),
        create_clip(tmp_path / name, width=16, height=16, fps=Fraction(25), color=BT709),
    ):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("name", ["a.mkv", "a.webp", "folder", "a.png"])
def test_a_finished_clip_appears_when_it_is_left_without_an_error(tmp_path: Path, name: str) -> None:
    pictures = smooth_pictures(1, 16, 24)

    def write(error: Exception | None) -> None:
        with create_clip(
            tmp_path / name, width=24, height=16, fps=Fraction(25), color=Color("rgb", True), lossless=True
        ) as clip:
            clip.write(pictures)
            clip.finish()
            assert not (tmp_path / name).exists()
            if error is not None:
                raise error

    with pytest.raises(RuntimeError, match="elsewhere"):
        write(RuntimeError("elsewhere"))
    assert list(tmp_path.iterdir()) == []
    write(None)
    assert np.array_equal(read_all(tmp_path / name)[1], pictures)


def test_an_image_file_holds_one_picture(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"\.png\) holds one picture, not several; name a folder"):
        write(tmp_path / "a.png", smooth_pictures(2, 8, 8))
    assert not list(tmp_path.iterdir())


def test_clip_writer_refuses_frames_of_another_size(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"\(n, 8, 9, 3\) of uint8 do"),
        create_clip(tmp_path / "a.mp4", width=9, height=8, fps=Fraction(25), color=BT709) as writer,
    ):
        writer.write(np.zeros((1, 9, 8, 3), np.uint8))


@pytest.mark.parametrize("fps", [16, 29.97002997002997, Fraction(30000, 1001)])
def test_write_clip_to_a_new_folder_comes_back(tmp_path: Path, fps: float) -> None:
    pictures = smooth_pictures(20, 24, 36)
    video = frames_to_tensor(pictures).requires_grad_()
    path = tmp_path / "new" / "a.mkv"
    write_clip(str(path), video, fps=fps, lossless=True)
    back, info = read_clip(path)
    assert torch.equal(back, video)
    assert info.fps == (16 if fps == 16 else Fraction(30000, 1001))
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        write_clip(path, video, fps=fps)
    with pytest.raises(UserError, match="both input and output"):
        write_clip(path, video, fps=fps, audio=AudioSource(path), overwrite=True)
    write_clip(path, video[0, :, :3], fps=fps, lossless=True, overwrite=True)
    assert torch.equal(read_clip(path)[0], video[:, :, :3])
    write_clip(tmp_path / "pictures", video[:, :, :2], fps=fps)
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.parametrize(
    ("video", "fps", "message"),
    [
        (torch.zeros(2, 3, 1, 8, 8), 25, r"shape \(2, 3, 1, 8, 8\); it must be one clip"),
        (torch.zeros(3, 8, 8), 25, "must be one clip"),
        (torch.cat([torch.zeros(3, 30, 8, 8), torch.full((3, 1, 8, 8), torch.nan)], 1), 25, "holds NaN"),
        (torch.zeros(3, 1, 8, 8), float("nan"), "nan frames a second is not possible"),
        (torch.zeros(3, 1, 8, 8), -1.5, "must be above 0"),
    ],
)
def test_write_clip_of_a_wrong_kind_is_refused_and_leaves_nothing(
    tmp_path: Path, video: torch.Tensor, fps: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_clip(tmp_path / "new" / "a.mp4", video, fps=fps)
    assert not any(tmp_path.iterdir())


FULL_DISK = """
import resource, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from wan_vae.errors import ClipError
from wan_vae.io import Color, create_clip

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
try:
    with create_clip(Path(sys.argv[1]), width=64, height=64, fps=Fraction(25), color=Color("rgb", True)) as writer:
        for _ in range(12):
            writer.write(noise)
except ClipError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [100, 4000, 60000])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.gif", "a.webp", "folder"])
def test_a_full_disk_is_reported_and_cleaned_up(tmp_path: Path, name: str, limit: int) -> None:
    if name == "folder" and limit > 4000:
        pytest.skip("each file of a folder is smaller")
    path = tmp_path / name
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path, str(limit)], capture_output=True, text=True, check=False
    )
    assert run.stdout.startswith(f"{path} cannot be written (File too large)"), run
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    code = """
import resource, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from wan_vae.io import Color, create_clip, open_clip

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
picture = np.broadcast_to(np.arange(192, dtype=np.uint8)[:, None], (4, 192, 192, 3)).copy()
def copy(count):
    for suffix in (".avi", ".gif", ".webp"):
        path = Path(sys.argv[1]) / f"a{suffix}"
        with create_clip(path, width=192, height=192, fps=Fraction(25), color=Color("rgb", True)) as writer:
            for _ in range(count // 4):
                writer.write(picture)
        with open_clip(path) as clip:
            assert sum(len(chunk) for chunk in clip.chunks(8)) == count
copy(40)
before = peak()
copy(240)  # 22 MB of RGB more
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 8


WRITE_ALL = """
import hashlib, sys
from pathlib import Path
from tests.io.sources import smooth_pictures
from tests.io.test_writing import write

for suffix in (".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif", ".webp"):
    path = Path(sys.argv[1]) / f"a{suffix}"
    write(path, smooth_pictures(9, 40, 56))
    print(suffix, hashlib.sha256(path.read_bytes()).hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc fills memory")
def test_lossy_clips_have_the_same_bytes_whatever_memory_held_before(tmp_path: Path) -> None:
    digests = []
    for value in ("0", "85"):
        env = {**os.environ, "MALLOC_PERTURB_": value}
        ended = subprocess.run([sys.executable, "-c", WRITE_ALL, tmp_path], env=env, capture_output=True, check=True)
        digests.append(ended.stdout)
    assert digests[0].count(b"\n") == 7
    assert digests[0] == digests[1]
