"""Files that cannot be read, or not wholly, are refused in one clear sentence."""

import io
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.io.sources import encode, rgb_frames, smooth_pictures
from wan_vae.errors import ClipError
from wan_vae.io import open_clip

PICTURES = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)


def read(path: Path, **options: Any) -> int:
    with open_clip(path, **options) as clip:
        return sum(len(chunk) for chunk in clip.chunks(4))


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(ClipError, match=message) as raised:
        read(path, **options)
    sentence = str(raised.value)
    assert str(path) in sentence or options
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_open_clip_of_a_bad_path_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing.mp4", "does not exist")
    refused(tmp_path, "no images in it; images end in")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "is empty")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty")
    for name in ("text.mp4", "text.txt", "text.png"):
        (tmp_path / name).write_text("Once upon a time there was a text. " * 20)
        refused(tmp_path / name, "cannot be read as|holds no video")


def test_open_clip_without_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
    refused(path, "holds only audio")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clips")
    yuv, exact = rgb_frames(PICTURES, "yuv420p"), rgb_frames(PICTURES)
    faststart = {"movflags": "+faststart"}
    made = {
        "end.mp4": encode(folder / "a.mp4", yuv, codec="libx264"),
        "front.mp4": encode(folder / "b.mp4", yuv, codec="libx264", container_options=faststart),
        "h264.mkv": encode(folder / "a.mkv", yuv, codec="libx264"),
        "live.mkv": encode(folder / "b.mkv", yuv, codec="libx264", container_options={"live": "1"}),
        "vp9.webm": encode(folder / "a.webm", yuv, codec="libvpx-vp9", options={"cpu-used": "8"}),
        "mpeg4.avi": encode(folder / "a.avi", yuv, codec="mpeg4"),
        "ffv1.avi": encode(folder / "b.avi", exact),
    }
    first, *others = (Image.fromarray(picture) for picture in PICTURES)
    for kind in ("gif", "webp", "png"):
        first.save(folder / f"a.{kind}", save_all=True, append_images=others, duration=40)
        made[f"animated.{kind}"] = folder / f"a.{kind}"
    for kind in ("jpg", "webp", "bmp", "tiff"):
        first.save(folder / f"s.{kind}")
        made[f"still.{kind}"] = folder / f"s.{kind}"
    return {name: path.read_bytes() for name, path in made.items()}


NAMES = [
    *("end.mp4", "front.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "ffv1.avi"),
    *("animated.gif", "animated.webp", "animated.png", "still.jpg", "still.webp", "still.bmp", "still.tiff"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.97])
def test_read_of_a_truncated_file_is_refused(tmp_path: Path, clips: dict[str, bytes], name: str, share: float) -> None:
    path = tmp_path / name
    path.write_bytes(clips[name])
    assert read(path) == (1 if name.startswith("still") else 20)
    path.write_bytes(clips[name][: int(len(clips[name]) * share)])
    refused(path, "cut short|damaged|cannot be read")


def test_read_of_a_live_recording_without_size_succeeds(tmp_path: Path, clips: dict[str, bytes]) -> None:
    (tmp_path / "a.mkv").write_bytes(clips["live.mkv"])
    assert read(tmp_path / "a.mkv") == 20


@pytest.mark.parametrize("name", ["mpeg4.avi", "animated.png"])
def test_read_of_a_damaged_file_is_refused(tmp_path: Path, clips: dict[str, bytes], name: str) -> None:
    data = bytearray(clips[name])
    middle = len(data) // 2
    data[middle : middle + 800] = bytes(800)
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, "is damaged: frame [0-9]+ of|cannot be read")


def test_frames_before_the_damage_can_be_read(tmp_path: Path, clips: dict[str, bytes]) -> None:
    data = bytearray(clips["mpeg4.avi"])
    last = len(data) * 3 // 4
    data[last : last + 800] = bytes(800)
    (tmp_path / "a.avi").write_bytes(data)
    assert read(tmp_path / "a.avi", frames=(0, 5)) == 5
    assert read(tmp_path / "a.avi", frames=(0, 3), fps=16) == 3


def test_a_damaged_frame_of_a_resampled_clip_is_numbered_in_the_source(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mov", rgb_frames(smooth_pictures(20, 48, 64), "rgb24"), codec="png")
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4 : len(data) * 3 // 4 + 8] = bytes(8)
    path.write_bytes(data)
    refused(path, r"is damaged: frame 1\d of 20 \(numbered from 0, before resampling\)", fps=16)
    assert read(path, frames=(0, 9), fps=16) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 10)}, "size 0x10 is not possible"),
        ({"size": (10, -1)}, "size 10x-1 is not possible"),
        ({"fps": Fraction(0)}, "0 frames a second"),
        ({"frames": (-3, None)}, "frames -3: counts from the end"),
        ({"frames": (20, None)}, "frames 20: selects no frame: the clip has 20"),
        ({"frames": (5, 5)}, "frames 5:5 selects no frame"),
        ({"length": 21}, "has 20 frames from number 0 on, at 25 a second; give a length of at most that, not 21"),
        ({"length": 5, "frames": (7, None), "fps": 10}, "has 1 frame from number 7 on, at 10 a second"),
        ({"length": 5, "frames": (20, None)}, "selects no frame: the clip has 20"),
    ],
)
def test_open_clip_with_options_out_of_range_is_refused(
    tmp_path: Path, clips: dict[str, bytes], options: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.mp4").write_bytes(clips["end.mp4"])
    refused(tmp_path / "a.mp4", message, **options)


def test_the_first_picture_of_another_size_is_named(tmp_path: Path) -> None:
    for number, size in enumerate([(8, 9), (8, 9), (9, 8), (7, 7)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    with pytest.raises(ClipError, match=r"2\.png is 9x8 but 0\.png in the same folder is 8x9"):
        open_clip(tmp_path)


def test_a_damaged_picture_of_a_folder_is_named(tmp_path: Path) -> None:
    for number, picture in enumerate(PICTURES[:3]):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:3000])
    with pytest.raises(ClipError, match=r"1\.png cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["list.mp4", "list.txt", "list"])
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile clip.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nclip.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 45678 RTP/AVP 32\n",
    ],
    ids=["concat", "hls", "sdp"],
)
def test_text_that_names_other_files_or_addresses_is_refused_at_once(
    text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "clip.mp4", rgb_frames(smooth_pictures(3, 16, 16), "yuv420p"), codec="libx264")
    Path(name).write_text(text, encoding="utf-8")
    begun = time.monotonic()
    for source in (name, io.BytesIO(text.encode())):
        with pytest.raises(ClipError, match=r"is a list of other files|cannot be read as a video"):
            open_clip(source)
    assert time.monotonic() - begun < 10  # a stream from the network would be waited for
