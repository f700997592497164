"""Clips that keep their alpha: what is read, and what was written comes back."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.io.sources import Array, encode, psnr, read_all, rgb_frames, smooth_pictures
from wan_vae.errors import ClipError
from wan_vae.io import Color, create_clip, open_clip, read_clip, write_clip
from wan_vae.io.color import Resizer, is_transparent, over_black


def transparent_pictures(count: int, height: int, width: int) -> Array:
    """(count, height, width, 4) uint8 without edges; alpha rises from 0 at the left, and differs between frames."""
    columns = np.mgrid[:height, :width][1] / max(width - 1, 1)
    alpha = np.stack([np.clip(300 * columns - 10 * n, 0, 255) for n in range(count)]).astype(np.uint8)
    return np.concatenate([smooth_pictures(count, height, width), alpha[..., None]], axis=3)


PICTURES = transparent_pictures(5, 30, 45)


def in_8_bits(pictures: Array) -> Array:
    return pictures if pictures.dtype == np.uint8 else np.rint(pictures / 257).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options"),
    [
        ("a.mov", "qtrle", "argb", {}),
        ("a.mov", "png", "rgba", {}),
        ("a.mkv", "ffv1", "bgra", {}),
        ("a.mkv", "rawvideo", "rgba", {}),
        ("a.nut", "rawvideo", "bgra", {}),
        ("a.avi", "rawvideo", "bgra", {}),
        ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
        ("a.webm", "libvpx-vp9", "yuva420p", {"crf": "10", "b": "0", "auto-alt-ref": "0"}),
        ("a.webm", "libvpx", "yuva420p", {"crf": "4", "b": "9M", "auto-alt-ref": "0"}),
    ],
)
def test_open_clip_of_a_video_with_alpha_gives_straight_colors_and_alpha(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    codec: str,
    pixel_format: str,
    options: dict[str, str],
) -> None:
    frames = [av.VideoFrame.from_ndarray(picture, "rgba").reformat(format=pixel_format) for picture in PICTURES]
    path = encode(tmp_path / name, frames, codec=codec, options=options, metadata={"alpha_mode": "1"})
    info, pictures = read_all(path, alpha=True)
    assert info.has_alpha
    assert pictures.dtype == (np.uint16 if codec == "prores_ks" else np.uint8)
    pictures = in_8_bits(pictures)
    if pixel_format.startswith("yuva"):
        assert psnr(pictures[..., :3], PICTURES[..., :3]) > 33
        assert psnr(pictures[..., 3], PICTURES[..., 3]) > 45
    else:
        assert (pictures == PICTURES).all()
    assert not caplog.records
    _, pictures = read_all(path, alpha=True, frames=(2, 8), fps=Fraction(50))
    assert psnr(in_8_bits(pictures), np.repeat(PICTURES[1:4], 2, 0)) > 33


@pytest.mark.parametrize("kind", ["png", "apng", "webp", "gif", "tiff", "folder"])
def test_open_clip_of_images_with_alpha_gives_straight_colors_and_alpha(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    wanted = PICTURES.copy()
    if kind == "gif":
        wanted[...] = 200, 100, 0, 255
        for n in range(len(wanted)):
            wanted[n, 3 : 9 + n, 4 : 20 + n, 3] = 0
    images = [Image.fromarray(picture) for picture in wanted]
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
        for number, image in enumerate(images):
            image.save(path / f"{number}.png")
    else:
        options: dict[str, Any] = {} if kind == "png" else {"save_all": True, "append_images": images[1:]}
        options |= {"webp": {"lossless": True, "exact": True}, "gif": {"disposal": 2}}.get(kind, {})
        images[0].save(path, {"apng": "PNG"}.get(kind, kind.upper()), **options)
    info, pictures = read_all(path, alpha=True, fps=None if kind in ("apng", "webp", "gif") else Fraction(10))
    assert info.has_alpha
    assert (pictures[..., 3] == wanted[: len(pictures), ..., 3]).all()
    shown = pictures[..., 3] > 0
    assert (pictures[shown] == wanted[: len(pictures)][shown]).all()
    assert len(pictures) == (1 if kind == "png" else 5)
    assert not caplog.records


def test_open_clip_of_16_bits_with_alpha_keeps_every_level(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7, 4), np.uint16)
    encode(tmp_path / "a.mkv", [av.VideoFrame.from_ndarray(deep, "rgba64le")], codec="ffv1")
    _, pictures = read_all(tmp_path / "a.mkv", alpha=True)
    assert pictures.dtype == np.uint16
    assert (pictures == deep).all()


@pytest.mark.parametrize("size", [None, (31, 17)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "rgba", "gray"])
def test_open_clip_of_an_opaque_source_gives_the_same_colors_and_full_alpha(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pixel_format: str, size: tuple[int, int] | None
) -> None:
    frames = rgb_frames(PICTURES[..., :3], pixel_format)
    path = encode(tmp_path / "a.mkv", frames, codec="rawvideo" if pixel_format == "rgba" else "ffv1")
    scaled: dict[str, Any] = {} if size is None else {"size": size, "fit": "stretch"}
    _, colors = read_all(path, **scaled)
    _, pictures = read_all(path, **scaled, alpha=True)
    assert pictures.dtype == colors.dtype
    assert (pictures[..., :3] == colors).all()
    assert (pictures[..., 3] == np.iinfo(colors.dtype).max).all()
    assert not caplog.records


def test_open_clip_of_raw_video_with_unset_alpha_is_opaque_with_a_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unset = PICTURES * np.array([1, 1, 1, 0], np.uint8)
    frames = [av.VideoFrame.from_ndarray(picture, "rgba").reformat(format="bgra") for picture in unset]
    path = encode(tmp_path / "a.avi", frames, codec="rawvideo")
    _, pictures = read_all(path)
    assert not caplog.records
    assert (pictures == PICTURES[..., :3]).all()
    _, pictures = read_all(path, alpha=True)
    assert (pictures[..., 3] == 255).all()
    (notice,) = (record.message for record in caplog.records)
    assert notice.startswith(f"{path} has an alpha of 0 in all of its first frame")
    assert notice.endswith("it is read as opaque.")


def test_read_clip_with_alpha_gives_a_video_of_4_channels(tmp_path: Path) -> None:
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", io.BytesIO(data)):
        video, info = read_clip(source, alpha=True)
        assert video.shape == (1, 4, 1, 30, 45)
        assert (info.width, info.height) == (45, 30)
        assert torch.equal(video[0, :, 0].movedim(0, -1), torch.from_numpy(PICTURES[0]) * (2 / 255) - 1)
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ClipError, match=r"b\.png cannot be read as an image"):
        read_clip(tmp_path / "b.png", alpha=True)


def test_transparency_without_alpha_asked_for_is_laid_over_black(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    _, pictures = read_all(tmp_path / "a.png")
    assert (pictures[0] == over_black(PICTURES[0])).all()
    assert "transparent pixels; they are laid over black" in caplog.text


@settings(deadline=None, max_examples=40)
@given(
    color=st.tuples(*[st.integers(0, 255)] * 3),
    hidden=st.tuples(*[st.integers(0, 255)] * 3),
    width=st.integers(1, 90),
    height=st.integers(1, 70),
    deep=st.booleans(),
)
def test_resizing_does_not_mix_in_colors_of_transparent_pixels(
    color: tuple[int, int, int], hidden: tuple[int, int, int], width: int, height: int, deep: bool
) -> None:
    picture = np.zeros((34, 45, 4), np.uint8)
    picture[..., 3] = np.random.default_rng(0).integers(0, 256, (34, 45))
    picture[8:20, 5:30, 3] = 0
    picture[:4, :, 3] = 255
    picture[..., :3] = np.where(picture[..., 3:] > 0, color, hidden)
    resized = in_8_bits(Resizer(width, height)(picture.astype(np.uint16) * 257 if deep else picture))
    assert resized.shape == (height, width, 4)
    shown = resized[..., 3] > 2  # below, the color of premultiplied pixels is coarse, and nobody sees it
    assert (width, height) == (45, 34) or np.abs(resized[shown][:, :3].astype(int) - color).max(initial=0) <= 4
    assert deep or (width, height) == (45, 34) or not resized[resized[..., 3] == 0].any()


@pytest.mark.parametrize("size", [(90, 60), (23, 15), (45, 17)])
def test_open_clip_resized_with_alpha_looks_like_the_resized_clip_over_black(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: tuple[int, int]
) -> None:
    frames = [av.VideoFrame.from_ndarray(picture, "rgba").reformat(format="bgra") for picture in PICTURES]
    path = encode(tmp_path / "a.mkv", frames)
    _, over = read_all(path, size=size)
    caplog.clear()
    info, pictures = read_all(path, size=size, fit="stretch", alpha=True)
    assert (info.width, info.height) == size
    assert all(is_transparent(picture) for picture in pictures)
    assert np.abs(np.stack([over_black(picture) for picture in pictures]).astype(int) - over).max() <= 3
    assert not caplog.records
    with open_clip(path, size=size, alpha=True) as clip:
        assert (next(clip.chunks(2)) == pictures[:2]).all()


def write(path: Path, pictures: Array, fps: Fraction = Fraction(25), **options: Any) -> None:
    height, width = pictures.shape[1:3]
    with create_clip(path, width=width, height=height, fps=fps, alpha=True, **options) as writer:
        writer.write(pictures[:2])
        writer.write(pictures[2:])


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 50),
    count=st.integers(1, 6),
    fps=st.sampled_from([Fraction(30000, 1001), Fraction(16), Fraction(25), Fraction(25, 2)]),
    suffix=st.sampled_from([".mov", ".mkv", ".webm"]),
    lossless=st.booleans(),
)
def test_video_with_alpha_keeps_size_count_rate_and_alpha(
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    height: int,
    count: int,
    fps: Fraction,
    suffix: str,
    lossless: bool,
) -> None:
    path = tmp_path_factory.mktemp("alpha") / f"a{suffix}"
    pictures = transparent_pictures(count, height, width)
    lossless = lossless and suffix != ".webm"
    write(path, pictures, fps, lossless=lossless)
    info, back = read_all(path, alpha=True)
    assert (info.frames, info.fps, info.has_alpha) == (count, fps, True)
    back = in_8_bits(back)
    assert back.shape == pictures.shape
    if lossless or suffix == ".mkv":
        assert (back == pictures).all()
    elif min(width, height) >= 16:
        assert psnr(back[..., :3], pictures[..., :3]) > (50 if suffix == ".mov" else 30)
        assert psnr(back[..., 3], pictures[..., 3]) > (60 if suffix == ".mov" else 38)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".mov", ".webm"])
def test_lossy_video_of_an_opaque_clip_with_alpha_stays_opaque(tmp_path: Path, suffix: str) -> None:
    pictures = transparent_pictures(3, 32, 48)
    pictures[..., 3] = 255
    write(tmp_path / f"a{suffix}", pictures)
    info, back = read_all(tmp_path / f"a{suffix}", alpha=True)
    assert not info.has_alpha
    assert (back[..., 3] == np.iinfo(back.dtype).max).all()
    assert psnr(in_8_bits(back)[..., :3], pictures[..., :3]) > 38


def test_prores_of_noise_keeps_alpha_exactly_and_colors_well(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 4), np.uint8)
    write(tmp_path / "a.mov", noise)
    info, back = read_all(tmp_path / "a.mov", alpha=True)
    back = in_8_bits(back)
    assert info.codec == "prores"
    assert (back[..., 3] == noise[..., 3]).all()
    assert psnr(back[..., :3], noise[..., :3]) > 50


@pytest.mark.parametrize(
    ("color", "stored"),
    [
        (Color("rgb", True), Color("bt709", False, 1, 1)),
        (Color("bt709", True, 1, 1), Color("bt709", False, 1, 1)),
        (Color("bt601", False, 6, 6), Color("bt601", False, 6, 6)),
        (Color("smpte240m", False, 7, 7), Color("bt709", False, 7, 7)),
        (Color("bt2020", False, 9, 16), Color("bt2020", False, 9, 16)),
        (Color("rgb", True, 9, 18), Color("bt2020", False, 9, 18)),
    ],
)
@pytest.mark.parametrize("lossless", [False, True])
def test_mov_with_alpha_tags_matrix_range_primaries_transfer_and_pixel_aspect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, color: Color, stored: Color, lossless: bool
) -> None:
    pictures = transparent_pictures(9, 32, 48)
    write(tmp_path / "a.mov", pictures, color=color, lossless=lossless, pixel_aspect=Fraction(4, 3))
    info, back = read_all(tmp_path / "a.mov", alpha=True)
    assert info.color == (color.for_rgb() if lossless else stored)
    assert info.pixel_aspect == Fraction(4, 3)
    assert psnr(in_8_bits(back), pictures) > 60
    assert not caplog.records


def test_webm_with_alpha_is_tagged_so_that_players_show_it(tmp_path: Path) -> None:
    write(tmp_path / "a.webm", transparent_pictures(2, 32, 48))
    with av.open(str(tmp_path / "a.webm")) as container:
        metadata = container.streams.video[0].metadata
    assert {key.lower(): value for key, value in metadata.items()}["alpha_mode"] == "1"


@pytest.mark.parametrize("name", ["a.webp", "folder", "a.png", "a.tif", "a.tiff", "a.mov", "a.mkv"])
def test_lossless_clips_with_alpha_keep_the_colors_of_transparent_pixels(tmp_path: Path, name: str) -> None:
    count = 1 if name.endswith(("png", "tif", "tiff")) else 4
    noise = np.random.default_rng(0).integers(0, 256, (count, 9, 13, 4), np.uint8)
    noise[..., 3] *= noise[..., 3] > 100
    write(tmp_path / name, noise, lossless=True)
    _, back = read_all(tmp_path / name, alpha=True)
    assert (back == noise).all()
    write(tmp_path / f"opaque_{name}", noise | np.array([0, 0, 0, 255], np.uint8), lossless=True)
    info, back = read_all(tmp_path / f"opaque_{name}", alpha=True)
    assert not info.has_alpha
    assert (back == noise | np.array([0, 0, 0, 255], np.uint8)).all()


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_with_alpha_replaces_the_picture_before_and_keeps_equal_ones(tmp_path: Path, lossless: bool) -> None:
    pictures = np.zeros((5, 20, 30, 4), np.uint8)
    pictures[:3, :, :10] = 200, 100, 50, 255
    pictures[3:, :, 20:] = 200, 100, 50, 255
    write(tmp_path / "a.webp", pictures, Fraction(30), lossless=lossless)
    info, back = read_all(tmp_path / "a.webp", alpha=True)
    assert (info.frames, info.fps, info.has_alpha) == (5, 30, True)
    assert (back[..., 3] == pictures[..., 3]).all()
    assert np.abs(back.astype(int) - pictures)[pictures[..., 3] > 0].mean() <= (0 if lossless else 3)
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.mode, image.info["loop"]) == ("RGBA", 0)
    write(tmp_path / "still.webp", pictures[:1], lossless=lossless)
    with Image.open(tmp_path / "still.webp") as image:
        assert (image.mode, getattr(image, "n_frames", 1)) == ("RGBA", 1)
        assert (np.asarray(image)[..., 3] == pictures[0, ..., 3]).all()


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.gif", "a.jpg", "a.jpeg", "a.bmp"])
def test_create_clip_with_alpha_in_a_format_without_it_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    wanted = r"cannot keep alpha; these can: a folder, \.mov, \.mkv, \.webm, \.webp, \.png, \.tif, \.tiff\.$"
    with pytest.raises(ClipError, match=wanted):
        create_clip(tmp_path / name, width=8, height=8, fps=25, alpha=True)
    with pytest.raises(ClipError, match=wanted):
        write_clip(tmp_path / "new" / name, torch.zeros(1, 4, 1, 8, 8), fps=25)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.webm", {"lossless": True}, r"cannot be lossless with alpha; these can: a folder, \.mov, \.mkv, \.webp\."),
        ("a.mkv", {"fps": 5000}, "cannot hold 5000 frames a second; give from .* to 1000, or name a .mov"),
        ("a.xyz", {}, "unknown extension"),
    ],
)
def test_create_clip_with_alpha_of_an_impossible_output_is_refused(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClipError, match=message):
        create_clip(tmp_path / name, **({"width": 8, "height": 8, "fps": 25, "alpha": True} | options))


@pytest.mark.parametrize(("alpha", "channels"), [(True, 3), (False, 4)])
def test_clip_writer_refuses_frames_of_another_number_of_channels(tmp_path: Path, alpha: bool, channels: int) -> None:
    with (
        pytest.raises(ValueError, match=rf"\(n, 8, 9, {7 - channels}\) of uint8 do"),
        create_clip(tmp_path / "a.mkv", width=9, height=8, fps=25, alpha=alpha) as writer,
    ):
        writer.write(np.zeros((1, 8, 9, channels), np.uint8))


def test_write_clip_of_a_video_with_alpha_comes_back(tmp_path: Path) -> None:
    video = torch.from_numpy(transparent_pictures(20, 24, 36)).movedim(-1, 0) * (2 / 255) - 1
    for name in ("a.mkv", "a.mov", "a.webp", "folder"):
        write_clip(tmp_path / name, video[None], fps=Fraction(24), lossless=True)
        back, info = read_clip(tmp_path / name, alpha=True, fps=Fraction(24))
        assert torch.equal(back[0], video)
        assert info.fps == 24


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("name", ["a.mov", "a.mkv", "a.webp"])
def test_open_clip_of_a_damaged_clip_with_alpha_is_refused(tmp_path: Path, name: str, alpha: bool) -> None:
    write(tmp_path / name, PICTURES)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ClipError, match=f"{name} (is|cannot be read)"):
        read_all(tmp_path / name, alpha=alpha)
