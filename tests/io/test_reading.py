"""What comes out of sources of every kind."""

import gc
import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import wan_vae.io
from tests.io.sources import Array, encode, frame_of_planes, read_all, rgb_frames, smooth_pictures
from wan_vae.errors import ClipError
from wan_vae.io import open_clip, read_clip
from wan_vae.io.ffmpeg_reader import AvSource

PICTURES = smooth_pictures(12, 30, 44)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("exact") / "a.mkv", rgb_frames(PICTURES))


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(16), Fraction(25, 2)])
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "libx264"), (".mkv", "ffv1"), (".avi", "ffv1"), (".mov", "qtrle")]
)
def test_rates_are_exact(tmp_path: Path, rate: Fraction, suffix: str, codec: str) -> None:
    layout = {"libx264": "yuv420p", "qtrle": "rgb24"}.get(codec, "bgr0")
    info, _ = read_all(encode(tmp_path / f"a{suffix}", rgb_frames(PICTURES, layout), codec=codec, rate=rate))
    assert info.fps == rate
    assert info.frames == 12
    assert not info.variable_frame_rate


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, exact: Path) -> dict[str, Path]:
    """`PICTURES` at 25 frames a second, at a variable rate, and as an animation of uneven durations."""
    folder = tmp_path_factory.mktemp("clips")
    times = [0, 1, 2, 3, 7, 8, 10, 11, 12, 13, 20, 21]
    images = [Image.fromarray(picture) for picture in PICTURES]
    images[0].save(
        folder / "a.png",
        save_all=True,
        append_images=images[1:],
        duration=[30, 50, 100, 20, 70, 40] * 2,
        default_image=False,
    )
    return {
        "constant": exact,
        "variable": encode(folder / "b.mkv", rgb_frames(PICTURES), times=times),
        "animation": folder / "a.png",
    }


bounds = st.tuples(st.none() | st.integers(0, 30), st.none() | st.integers(0, 30))


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["constant", "variable", "animation"]),
    frames=bounds,
    fps=st.none() | st.sampled_from([16, Fraction(25), Fraction(50), Fraction(10), Fraction(30000, 1001), 3]),
    count=st.integers(1, 13),
)
def test_frames_are_a_slice_of_the_resampled_clip(
    clips: dict[str, Path], kind: str, frames: tuple[int | None, int | None], fps: Fraction | None, count: int
) -> None:
    whole, pictures = read_all(clips[kind], fps=fps)
    if len(pictures[slice(*frames)]) == 0:
        with pytest.raises(ClipError, match=f"selects no frame: .*the clip has {len(pictures)}, numbered from 0"):
            open_clip(clips[kind], frames=frames, fps=fps)
        return
    info, selected = read_all(clips[kind], count, frames=frames, fps=fps)
    assert fps is None or info.fps == whole.fps == fps
    assert np.array_equal(selected, pictures[slice(*frames)])


@settings(deadline=None, max_examples=20)
@given(fps=st.sampled_from([Fraction(25), Fraction(50), Fraction(10), Fraction(16), Fraction(30000, 1001)]))
def test_fps_keeps_the_duration(exact: Path, fps: Fraction) -> None:
    info, pictures = read_all(exact, fps=fps)
    assert info.fps == fps
    assert abs(len(pictures) - 12 * fps / 25) <= Fraction(1, 2)
    places = [int(np.abs(PICTURES.astype(int) - picture).sum((1, 2, 3)).argmin()) for picture in pictures]
    assert places == sorted(places)
    assert places[0] == 0


@settings(deadline=None, max_examples=15)
@given(first=st.none() | st.integers(0, 5), length=st.integers(1, 7), fps=st.sampled_from([None, 25, 50, 40]))
def test_length_is_the_number_of_frames_after_resampling(
    exact: Path, first: int | None, length: int, fps: int | None
) -> None:
    _, pictures = read_all(exact, frames=(first, None), length=length, fps=fps)
    _, sliced = read_all(exact, frames=(first, (first or 0) + length), fps=fps)
    assert len(pictures) == length
    assert np.array_equal(pictures, sliced)


def test_frames_of_a_resampled_clip_are_as_many_as_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", rgb_frames(smooth_pictures(100, 16, 16)))
    info, _ = read_all(path, frames=(0, 49), fps=16)
    assert (info.frames, info.fps) == (49, 16)


@pytest.mark.parametrize(("fps", "last"), [(None, 5), (16, 6), (50, 2)])
def test_reading_stops_after_the_last_frame_selected(
    tmp_path: Path, fps: int | None, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    path = encode(tmp_path / "a.mkv", rgb_frames(PICTURES))
    with open_clip(path, frames=(0, 6 if fps is None or fps == 50 else 5), fps=fps) as clip:
        source = clip._source
        assert isinstance(source, AvSource)
        decode = source._decode

        def counted(*arguments: Any) -> Any:
            for number, frame in enumerate(decode(*arguments)):
                read.append(number)
                yield frame

        monkeypatch.setattr(source, "_decode", counted)
        assert sum(len(chunk) for chunk in clip.chunks(4)) == clip.info.frames
    assert read[-1] == last


def test_a_clip_can_be_read_again(exact: Path) -> None:
    with open_clip(exact) as clip:
        next(clip.chunks(3))
        assert sum(len(chunk) for chunk in clip.chunks(5)) == 12


def test_new_size_keeps_the_shape_of_the_whole(exact: Path) -> None:
    info, pictures = read_all(exact, size=(22, 30))
    assert (info.width, info.height, info.pixel_aspect) == (22, 30, Fraction(2))
    halves = PICTURES.reshape(12, 30, 22, 2, 3).mean(3)
    assert np.abs(pictures - halves).mean() < 2


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_phone_video_is_turned_upright(tmp_path: Path, degrees: int) -> None:
    path = encode(
        tmp_path / "a.mp4", rgb_frames(PICTURES, "rgb24"), codec="libx264rgb", options={"qp": "0"}, rotation=degrees
    )
    info, pictures = read_all(path)
    # FFmpeg counts the angle anticlockwise.
    assert (pictures == np.rot90(PICTURES, degrees // 90, (1, 2))).all()
    assert info.rotation == (360 - degrees) % 360


def test_variable_rate_keeps_every_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = [0, 1, 2, 6, 7, 8, 9, 15, 16, 17, 18, 19]
    path = encode(tmp_path / "a.mkv", rgb_frames(PICTURES), times=times)
    info, pictures = read_all(path)
    assert info.variable_frame_rate
    assert info.fps == 15
    assert (pictures == PICTURES).all()
    assert [r.message for r in caplog.records if "variable frame rate" in r.message and "15.000" in r.message]
    caplog.clear()
    _, pictures = read_all(path, fps=Fraction(25))
    shown = [max(n for n, time in enumerate(times) if time <= tick) for tick in range(20)]
    assert (pictures == PICTURES[shown]).all()
    assert not caplog.records


@pytest.mark.parametrize("kind", ["webm", "mov", "png", "webp", "gif"])
def test_transparency_goes_over_black(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    tolerance, count = 3, 3
    if kind == "webm":
        alpha = np.repeat(np.linspace(0, 255, 44)[None], 30, 0).astype(np.uint8)
        half = np.full((15, 22), 128, np.uint8)
        frame = frame_of_planes([np.full_like(alpha, 235), half, half, alpha], "yuva420p")
        lossless = {"lossless": "1", "auto-alt-ref": "0"}
        encode(path, [frame] * 3, codec="libvpx-vp9", options=lossless, metadata={"alpha_mode": "1"})
        wanted = alpha[..., None] * np.ones(3)
    elif kind == "mov":
        luma, chroma = np.full((30, 44), 940, np.uint16), np.full((30, 44), 512, np.uint16)
        alpha = np.repeat(np.linspace(0, 1023, 44)[None], 30, 0).astype(np.uint16)
        planes: list[Array] = [luma, chroma, chroma, alpha]
        encode(path, [frame_of_planes(planes, "yuva444p10le")] * 3, codec="prores_ks", options={"profile": "4444"})
        wanted = alpha[..., None] / 1023 * 65535 * np.ones(3)
        tolerance = 600
    else:
        rgba = np.full((30, 44, 4), 200, np.uint8)
        rgba[:, 22:, 3] = 0 if kind == "gif" else 51
        rgba[:, :22, 3] = 255
        wanted = rgba[..., :3] * (rgba[..., 3:] / 255)
        stills = [Image.fromarray(rgba - np.array([n, 0, 0, 0], np.uint8)) for n in range(count)]
        options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "webp" else {}
        if kind == "png":
            stills, count = stills[:1], 1
        else:
            options |= {"save_all": True, "append_images": stills[1:], "duration": 40, "disposal": 2}
        stills[0].save(path, **options)
    info, pictures = read_all(path)
    assert info.has_alpha
    assert len(pictures) == count
    assert np.abs(pictures[0] - wanted).max() <= tolerance
    assert [r.message for r in caplog.records if "over black" in r.message] == [
        f"{path} has transparent pixels; they are laid over black."
    ]


def test_opaque_animations_have_no_alpha(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.gif"
    first, *others = (Image.fromarray(picture) for picture in PICTURES)
    first.save(path, save_all=True, append_images=others, duration=40)
    info, _ = read_all(path)
    assert not info.has_alpha
    assert info.fps == 25
    assert not caplog.records


def test_animated_webp_goes_by_its_durations(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    first, *others = (Image.fromarray(picture) for picture in PICTURES)
    first.save(path, save_all=True, append_images=others, duration=[33, 34, 33] * 4, lossless=True)
    info, pictures = read_all(path)
    assert info.fps == 30
    assert (pictures == PICTURES).all()
    first.save(path, save_all=True, append_images=others, duration=[40] * 6 + [80] * 6, lossless=True)
    info, pictures = read_all(path, fps=Fraction(25))
    assert info.variable_frame_rate
    assert (pictures == PICTURES[[0, 1, 2, 3, 4, 5, *sorted([*range(6, 12)] * 2)]]).all()


def test_folder_is_read_in_natural_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("hello")
    info, pictures = read_all(tmp_path)
    assert info.fps == 24
    assert (pictures == PICTURES).all()
    assert info.container == "folder"
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert "notes.txt" in messages[0]
    assert "24 a second" in messages[1]
    info, pictures = read_all(tmp_path, fps=Fraction(10), frames=(2, 5))
    assert info.fps == 10
    assert (pictures == PICTURES[2:5]).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_orientation(tmp_path: Path, tag: int, mode: str) -> None:
    image = Image.fromarray(PICTURES[0]).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = tag
    image.save(tmp_path / "a.png", exif=exif)
    _, pictures = read_all(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        wanted = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert (pictures[0] == wanted).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_images_of_16_bits_keep_their_depth(tmp_path: Path, suffix: str) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    frame = av.VideoFrame.from_ndarray(deep, "rgb48le")
    codec = {".png": "png", ".tiff": "tiff"}[suffix]
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height, context.time_base = 30, 20, Fraction(1, 25)
    context.pix_fmt = "rgb48be" if codec == "png" else "rgb48le"
    frame = frame.reformat(format=context.pix_fmt)
    frame.pts = 0
    (tmp_path / f"a{suffix}").write_bytes(b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)]))
    info, pictures = read_all(tmp_path / f"a{suffix}")
    assert info.bit_depth == 16
    assert (pictures[0] == deep).all()


def test_folder_of_mixed_depths_is_read_as_uint16(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5, 3), 255, np.uint8)).save(tmp_path / "1.png")
    Image.fromarray(np.full((4, 5), 65535, np.uint16)).save(tmp_path / "2.png")
    _, pictures = read_all(tmp_path)
    assert pictures.dtype == np.uint16
    assert (pictures == 65535).all()


def test_frames_and_rates_hold_with_b_frames_in_avi(tmp_path: Path) -> None:
    frames = rgb_frames(PICTURES, "yuv420p")
    info, _ = read_all(encode(tmp_path / "a.avi", frames, codec="mpeg4", options={"bf": "2"}))
    assert info.fps == 25


def test_importing_io_loads_neither_torch_nor_pyav() -> None:
    code = "import sys, wan_vae.io.atomic_output; sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_frees_frames_without_the_garbage_collector(tmp_path: Path) -> None:
    # Frames are few and large: the collector, which counts objects, would let hundreds of megabytes wait.
    path = encode(tmp_path / "a.mkv", rgb_frames(smooth_pictures(40, 48, 64), "yuv420p"))
    gc.collect()
    others = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())  # in tracebacks of earlier tests
    gc.disable()
    try:
        with open_clip(path) as clip:
            for _ in clip.chunks(4):
                pass
        left = sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) - others
    finally:
        gc.enable()
    assert left <= 4


def test_public_names_are_listed_and_exist() -> None:
    assert {"open_clip", "read_clip", "write_clip", "load_latents", "tensor_to_frames"} <= set(dir(wan_vae.io))
    assert all(hasattr(wan_vae.io, name) for name in wan_vae.io.__all__)


@pytest.mark.parametrize("kind", ["str", "path", "memory", "file"])
def test_read_clip_from_any_source_gives_the_whole_video(exact: Path, kind: str) -> None:
    sources = {"str": str(exact), "path": exact, "memory": io.BytesIO(exact.read_bytes()), "file": exact.open("rb")}
    source: Any = sources[kind]
    if kind in ("memory", "file"):
        source.read(10)
    video, info = read_clip(source)
    assert (video.shape, video.dtype) == ((1, 3, 12, 30, 44), torch.float32)
    assert torch.equal(video[0].permute(1, 2, 3, 0), torch.from_numpy(PICTURES).float() * (2 / 255) - 1)
    assert (info.frames, info.fps) == (12, 25)
    with open_clip(source, frames=(3, 5)) as clip:
        assert np.array_equal(next(clip.chunks(2)), PICTURES[3:5])
        assert np.array_equal(next(clip.chunks(2)), PICTURES[3:5])
    if kind in ("memory", "file"):
        assert not source.closed
    sources["file"].close()


def test_file_objects_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", rgb_frames(PICTURES, "yuv420p"), codec="libx264", audio_codec="aac")
    data = path.read_bytes()
    for content, message in (
        (b"", "is empty"),
        (data[:-50], "is cut short"),
        (b"text " * 50, "cannot be read|no video"),
    ):
        with pytest.raises(ClipError, match=f"^the file object {message}"):
            open_clip(io.BytesIO(content))
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as pipe:
        with pytest.raises(ClipError, match=r"cannot seek; read its content into an io\.BytesIO"):
            open_clip(pipe.stdout)  # type: ignore[arg-type]
        pipe.communicate()
    with open_clip(io.BytesIO(data)) as clip:
        assert clip.info.has_audio
        assert clip.audio is None


@pytest.mark.parametrize(
    ("fps", "exact_fps"), [(10, 10), (12.5, Fraction(25, 2)), (30000 / 1001, Fraction(30000, 1001))]
)
def test_open_clip_with_a_rate_of_any_number_type_is_exact(exact: Path, fps: float, exact_fps: Fraction) -> None:
    with open_clip(exact, fps=fps) as clip:
        assert clip.info.fps == exact_fps
    for impossible in (float("nan"), float("inf"), 0.0, -1, 1001):
        with pytest.raises(ClipError, match="frames a second is not possible"):
            open_clip(exact, fps=impossible)


CLOSE_EARLY = """
import sys
import av
from wan_vae.io import open_clip
av.logging.set_level(av.logging.ERROR)  # as importing torchvision does
for _ in range(100):  # one in 100 to 400 hung with PyAV 16
    with open_clip(sys.argv[1]) as clip:
        next(clip.chunks(2))
"""


@pytest.mark.slow
def test_close_while_the_decoder_is_at_work_ends_where_a_library_listens_to_its_messages(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 512, 512, 3), dtype=np.uint8)
    clip = encode(tmp_path / "a.mp4", rgb_frames(noise, "yuv420p"), codec="libx264")
    subprocess.run([sys.executable, "-c", CLOSE_EARLY, clip], check=True, timeout=300)
