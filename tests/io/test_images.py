"""Images: what is recognized, how many pictures there are, and what they look like."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, features

from tests.io.sources import Array, encode, read_all, rgb_frames, smooth_pictures
from wan_vae.errors import ClipError
from wan_vae.io import open_clip

PICTURES = smooth_pictures(6, 20, 30)
IMAGES = [Image.fromarray(picture) for picture in PICTURES]
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF; 11.3 and newer do")


def image_bytes(kind: str, images: list[Image.Image] = IMAGES, **options: Any) -> bytes:
    file = io.BytesIO()
    if len(images) > 1:
        options |= {"save_all": True, "append_images": images[1:]}
    for image in images:
        image.encoderconfig = ()  # Pillow keeps that of the last format
    images[0].save(file, kind, **options)
    return file.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(ClipError, match=message):
        read_all(path)


def messages(log: pytest.LogCaptureFixture) -> str:
    return " ".join(record.message for record in log.records)


def exactly(picture: Image.Image) -> Array:
    return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("name", ["a.gif", "a", "a.mp4", "a.png", "memory"])
def test_gif_without_extension_blocks_is_read_whole_under_any_name(tmp_path: Path, name: str) -> None:
    data = image_bytes("GIF")
    source: Any = io.BytesIO(data) if name == "memory" else written(tmp_path / name, data)
    info, pictures = read_all(source)
    assert (info.frames, info.fps, info.codec, info.variable_frame_rate) == (6, 10, "gif", False)
    with Image.open(io.BytesIO(data)) as image:
        for index, picture in enumerate(pictures):
            image.seek(index)
            assert (picture == exactly(image)).all()


def test_gif_of_variable_durations_keeps_them(tmp_path: Path) -> None:
    info, _ = read_all(written(tmp_path / "a.gif", image_bytes("GIF", duration=[40, 40, 200, 40, 40, 40])))
    assert info.variable_frame_rate
    assert info.fps == 15


@pytest.mark.parametrize(("duration", "rate"), [(None, 10), (0, 10), (10, 10), (200, 5)])
def test_gif_of_one_picture_has_the_rate_of_its_duration(tmp_path: Path, duration: int | None, rate: int) -> None:
    options = {} if duration is None else {"duration": duration}
    path = written(tmp_path / "a.gif", image_bytes("GIF", IMAGES[:1], **options))
    info, _ = read_all(path)
    assert (info.frames, info.fps) == (1, rate)
    info, _ = read_all(path, fps=Fraction(24))
    assert (info.frames, info.fps) == (1, 24)


@pytest.mark.parametrize(
    ("change", "notice"),
    [
        (lambda data: data + b"\n", ""),
        (lambda data: data + bytes(5), ""),
        (lambda data: data + b"<!-- junk; -->", "the last 14 bytes"),
        (lambda data: data[:-1], "no end mark; its 6 pictures are read"),
    ],
)
def test_gif_with_an_odd_end_is_read_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[bytes], bytes], notice: str
) -> None:
    info, _ = read_all(written(tmp_path / "a.gif", change(image_bytes("GIF", duration=40))))
    assert info.frames == 6
    assert notice in messages(caplog)
    assert bool(notice) == bool(caplog.records)


def test_gif_cut_within_a_picture_is_refused(tmp_path: Path) -> None:
    data = image_bytes("GIF", duration=40)
    for missing in (2, 3, 100, len(data) // 2):
        refused(written(tmp_path / "a.gif", data[:-missing]), "cut short")


def test_gif_with_a_picture_outside_of_its_blocks_is_refused(tmp_path: Path) -> None:
    data = image_bytes("GIF", duration=40)
    control = data.index(b"!\xf9\x04", data.index(b"!\xf9\x04") + 1)
    # The block before the second picture swallows its start.
    comment = b"!\xfe" + bytes([len(data) - 1 - control if len(data) - 1 - control < 256 else 255])
    refused(
        written(tmp_path / "a.gif", data[:control] + comment + data[control:]), "in no block|cut short|unknown block"
    )
    refused(written(tmp_path / "b.gif", data + data), "in no block")


def test_gif_composes_pictures_as_ffmpeg_does(tmp_path: Path) -> None:
    holed = []
    for number, picture in enumerate(PICTURES):
        alpha = np.full(picture.shape[:2], 255, np.uint8)
        alpha[2 + number : 9 + number, 3 + 2 * number : 14 + 2 * number] = 0
        holed.append(Image.fromarray(np.dstack([picture, alpha])))
    for disposal in ([0] * 6, [1] * 6, [2] * 6, [1, 3, 1, 3, 1, 1], [1, 2, 3, 0, 2, 1]):
        path = written(tmp_path / "a.gif", image_bytes("GIF", holed, duration=40, disposal=disposal))
        info, pictures = read_all(path)
        assert info.has_alpha
        with av.open(str(path)) as container:
            wanted = [frame.to_ndarray(format="rgba") for frame in container.decode(video=0)]
        for picture, other in zip(pictures, wanted, strict=True):
            assert (picture == other[..., :3] * (other[..., 3:] == 255)).all()
        _, end = read_all(path, frames=(4, None))
        assert (end == pictures[4:]).all()


@pytest.mark.parametrize("name", ["a.png", "a.apng", "a"])
def test_apng_skips_the_image_that_is_not_part_of_the_animation(tmp_path: Path, name: str) -> None:
    red = Image.new("RGB", (30, 20), (255, 0, 0))
    data = image_bytes("PNG", [red, *IMAGES], default_image=True, duration=40)
    info, pictures = read_all(written(tmp_path / name, data))
    assert (info.frames, info.fps, info.variable_frame_rate) == (6, 25, False)
    assert (pictures == PICTURES).all()


def test_apng_of_16_bits_gives_its_own_pictures(tmp_path: Path) -> None:
    pictures = np.arange(3, dtype=np.uint16)[:, None, None, None] * np.full((1, 16, 24, 3), 20000, np.uint16)
    frames = [av.VideoFrame.from_ndarray(picture, "rgb48le").reformat(format="rgb48be") for picture in pictures]
    encode(tmp_path / "a.apng", frames, codec="apng")
    info, found = read_all(tmp_path / "a.apng")
    assert (info.frames, info.bit_depth) == (3, 16)
    assert np.abs(found.astype(int) - pictures).max() <= 257


def test_color_profiles_other_than_srgb_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, kind in (("s.png", "sRGB"), ("l.png", "LAB")):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()
        IMAGES[0].save(tmp_path / name, icc_profile=profile)
    IMAGES[0].save(tmp_path / "d.png", icc_profile=b"damaged")
    open_clip(tmp_path / "s.png")
    assert not caplog.messages
    for name in ("l.png", "d.png"):
        caplog.clear()
        _, pictures = read_all(tmp_path / name)
        assert (pictures[0] == PICTURES[0]).all()
        assert f"{name} has the color profile" in caplog.messages[0]
        assert "which is not applied" in caplog.messages[0]


def test_apng_that_announces_another_number_of_pictures_is_refused(tmp_path: Path) -> None:
    data = image_bytes("PNG", duration=40)
    at = data.index(b"acTL")
    control = b"acTL" + struct.pack(">II", 4, 0)
    changed = data[:at] + control + struct.pack(">I", zlib.crc32(control)) + data[at + 16 :]
    refused(written(tmp_path / "a.png", changed), "announces 4 pictures and holds 6")
    refused(written(tmp_path / "b.png", data.replace(b"acTL", b"acTM")), "cannot be read")


def test_apng_goes_by_its_durations_and_not_by_a_text(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("duration", "1e999999999")
    info, _ = read_all(written(tmp_path / "a.png", image_bytes("PNG", pnginfo=text, duration=40)))
    assert info.fps == 25
    info, _ = read_all(written(tmp_path / "b.png", image_bytes("PNG", IMAGES[:1], pnginfo=text)))
    assert (info.frames, info.fps) == (1, 24)


@needs_avif
def test_animated_avif_gives_all_pictures_at_their_rate(tmp_path: Path) -> None:
    info, pictures = read_all(written(tmp_path / "a.avif", image_bytes("AVIF", duration=40, quality=100)))
    assert (info.frames, info.fps, info.variable_frame_rate) == (6, 25, False)
    assert np.abs(pictures.astype(int) - PICTURES).mean() < 3


@needs_avif
def test_avif_shows_its_alpha(tmp_path: Path) -> None:
    image = IMAGES[0].convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    info, _ = read_all(written(tmp_path / "a", image_bytes("AVIF", [image])))
    assert info.has_alpha


@needs_avif
def test_avif_of_tiles_is_read_whole() -> None:
    info, pictures = read_all(Path(__file__).parents[1] / "data" / "tiles.avif")
    assert (info.width, info.height) == (256, 128)
    assert pictures[0, :64, :128].std() > 1
    assert np.abs(pictures[0, :64, :128].astype(int) - pictures[0, 64:, 128:]).mean() > 1


def test_avif_without_a_decoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(50)
    monkeypatch.setattr(features, "check", lambda _: False)
    refused(written(tmp_path / "a.avif", data), "convert it to PNG or JPEG, or install Pillow 11.3 or newer")


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix", b"hevc"])
def test_heif_of_tiles_is_refused(tmp_path: Path, brand: bytes) -> None:
    data = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + struct.pack(">I", 100) + b"meta" + bytes(92)
    refused(written(tmp_path / "a.bin", data), "is HEIF, which this Pillow cannot read; convert it to PNG or JPEG")


def test_heif_that_is_only_a_sequence_is_read_as_a_video(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", rgb_frames(PICTURES, "yuv420p"), codec="libx264")
    data = path.read_bytes()
    info, _ = read_all(written(tmp_path / "a.heics", data[:8] + b"hevc" + data[12:]))
    assert (info.frames, info.fps) == (6, 25)


def test_images_that_follow_one_another_in_a_file_are_a_video(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG"):
        data = b"".join(image_bytes(kind, [image]) for image in IMAGES)
        info, _ = read_all(written(tmp_path / kind, data))
        assert info.frames == 6


def test_tiff_pages_are_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "a.tif", image_bytes("TIFF"))
    info, pictures = read_all(path)
    assert (info.frames, info.fps) == (6, 24)
    assert (pictures == PICTURES).all()
    assert "6 pages, which have no rate: 24 a second is assumed" in messages(caplog)
    info, pictures = read_all(path, fps=Fraction(10), frames=(2, 5))
    assert (info.fps, len(pictures)) == (10, 3)
    assert (pictures == PICTURES[2:5]).all()


def test_tiff_pages_of_16_bits_are_frames(tmp_path: Path) -> None:
    deep = [np.full((20, 30), 1000 * number, np.uint16) for number in range(1, 4)]
    info, pictures = read_all(
        written(tmp_path / "a.tif", image_bytes("TIFF", [Image.fromarray(page) for page in deep]))
    )
    assert (info.bit_depth, info.frames) == (16, 3)
    assert (pictures == np.stack(deep)[..., None]).all()


def test_photo_with_more_pictures_is_one_picture_also_without_a_name(tmp_path: Path) -> None:
    content = image_bytes("MPO", [IMAGES[0], IMAGES[1].resize((15, 10))])  # as phones store a map of the gain
    for source in (written(tmp_path / "a.jpg", content), written(tmp_path / "a", content), io.BytesIO(content)):
        with open_clip(source) as clip:
            assert (clip.info.container, clip.info.frames) == ("image", 1)


def test_tiff_previews_are_no_frames_and_pages_of_other_sizes_are_refused(tmp_path: Path) -> None:
    small = IMAGES[1].resize((15, 10))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    info, pictures = read_all(written(tmp_path / "a.tif", image_bytes("TIFF", [IMAGES[0], small])))
    assert info.frames == 1
    assert (pictures[0] == PICTURES[0]).all()
    refused(written(tmp_path / "c.tif", image_bytes("TIFF", [IMAGES[0]], tiffinfo={254: 1})), "only previews")
    del small.encoderinfo
    refused(
        written(tmp_path / "b.tif", image_bytes("TIFF", [IMAGES[0], small])),
        "page 1 of .* is 15x10 but page 0 is 30x20",
    )


def test_tiff_pages_in_a_circle_are_refused(tmp_path: Path) -> None:
    data = bytearray(image_bytes("TIFF", IMAGES[:1]))
    first = int.from_bytes(data[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")
    data[end : end + 4] = data[4:8]
    refused(written(tmp_path / "a.tif", bytes(data)), "followed by an earlier one")


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_is_turned_upright(tmp_path: Path, tag: int, dtype: type) -> None:
    levels = np.arange(600, dtype=dtype).reshape(20, 30)
    exif = Image.Exif()
    exif[0x0112] = tag
    info, pictures = read_all(written(tmp_path / "a.tif", image_bytes("TIFF", [Image.fromarray(levels)], exif=exif)))
    turned = {2: levels[:, ::-1], 3: levels[::-1, ::-1], 4: levels[::-1], 5: levels.T, 6: np.rot90(levels, -1)}
    turned |= {7: levels[::-1, ::-1].T, 8: np.rot90(levels)}
    assert (pictures[0, ..., 0] == turned.get(tag, levels)).all()
    assert (info.width, info.height) == ((20, 30) if tag > 4 else (30, 20))


def test_tiff_of_floats_is_scaled_from_0_to_1_and_refused_beyond(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    info, pictures = read_all(written(tmp_path / "a.tif", image_bytes("TIFF", [Image.fromarray(values)])))
    assert info.bit_depth == 32
    assert (pictures[0] == np.rint(values * 65535)[..., None]).all()
    for odd in (values * 255, values - 1, np.full_like(values, np.nan)):
        refused(
            written(tmp_path / "b.tif", image_bytes("TIFF", [Image.fromarray(odd)])), "outside 0 to 1 or not a number"
        )


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_tiff_of_any_mode_has_the_pixels_that_pillow_gives(tmp_path: Path, mode: str) -> None:
    data = image_bytes("TIFF", [IMAGES[0].convert(mode)])
    with Image.open(io.BytesIO(data)) as image:
        try:
            expected = exactly(image)
        except OSError as error:  # YCbCr, before Pillow 12.1
            pytest.skip(f"this Pillow cannot read what it writes: {error}")
    _, pictures = read_all(written(tmp_path / "a.tif", data))
    assert (pictures[0] == expected).all()


def test_tiff_of_modes_without_a_meaning_in_rgb_is_refused(tmp_path: Path) -> None:
    wide = Image.fromarray(np.arange(600, dtype=np.int32).reshape(20, 30))
    refused(written(tmp_path / "a.tif", image_bytes("TIFF", [wide])), "integers of 32 bits .* convert it")
    profiles = [ImageCms.createProfile(kind) for kind in ("sRGB", "LAB")]
    lab = ImageCms.applyTransform(IMAGES[0], ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert lab is not None
    refused(written(tmp_path / "b.tif", image_bytes("TIFF", [lab])), "pixels of kind LAB, .* convert it to RGB")


def test_folder_leaves_out_hidden_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"f{number}.png")
    (tmp_path / "._f0.png").write_bytes(b"\0\5\x16\7" + bytes(4092))
    (tmp_path / ".f6.partial.png").write_bytes((tmp_path / "f2.png").read_bytes())
    info, pictures = read_all(tmp_path, fps=Fraction(24))
    assert info.frames == 6
    assert (pictures == PICTURES).all()
    assert not caplog.records


def test_folder_with_pipes_and_broken_links_does_not_hang(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    IMAGES[0].save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert read_all(tmp_path)[0].frames == 1
    assert "left out: b.png" in messages(caplog)
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere")
    refused(tmp_path, r"c\.png is a link to a file that does not exist")


def test_folder_of_animations_says_that_it_takes_their_first_pictures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes("PNG", duration=40))
    _, pictures = read_all(tmp_path)
    assert (pictures == PICTURES[:1]).all()
    assert "holds 6 pictures, of which the folder's clip has the first" in messages(caplog)


def test_images_that_change_after_they_were_opened_are_refused(tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        IMAGES[0].save(tmp_path / name)
    with open_clip(tmp_path) as clip:
        (tmp_path / "1.png").unlink()
        with pytest.raises(ClipError, match=r"1\.png cannot be read .*No such file"):
            list(clip.chunks(1))
        IMAGES[0].resize((9, 9)).save(tmp_path / "1.png")
        with pytest.raises(ClipError, match="is 9x9, not 30x20"):
            list(clip.chunks(1))
    path = written(tmp_path / "a.gif", image_bytes("GIF"))
    with open_clip(path) as clip:
        path.write_bytes(image_bytes("GIF", IMAGES[:3]))
        with pytest.raises(ClipError, match=r"a\.gif cannot be read"):
            list(clip.chunks(1))


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND")
    ).join((b"\x89PNG\r\n\x1a\n", b""))


def test_large_images_are_described_without_decoding_and_refused_before(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", png_header(16000, 16000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_clip(path) as clip:
            assert (clip.info.width, clip.info.bit_depth, clip.info.has_alpha) == (16000, 16, False)
            with pytest.raises(ClipError, match=r"is 16000x16000, .* give a smaller size \(--size\)"):
                next(clip.chunks(1))
        refused(written(tmp_path / "b.png", png_header(70000, 100)), "70000x100, which is too large")


DAMAGED = {
    kind: (count, image_bytes(kind.split()[0], IMAGES[:count], **({"duration": 40} if count > 1 else {})))
    for kind, count in [
        *(("PNG", 1), ("PNG 6", 6), ("GIF 6", 6), ("WEBP", 1), ("WEBP 6", 6), ("JPEG", 1), ("BMP", 1), ("TIFF", 1)),
        *((("AVIF", 1), ("AVIF 6", 6)) if features.check("avif") else ()),
    ]
}


@pytest.mark.parametrize("kind", DAMAGED)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_damaged_images_give_all_pictures_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    count, content = DAMAGED[kind]
    damaged = bytearray(content)
    if data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[data.draw(st.integers(0, len(content) - 1)) :]
    path = tmp_path_factory.mktemp("damaged") / f"a.{kind[:4].strip().lower()}"
    path.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(ClipError), open_clip(path) as clip:
            assert sum(len(chunk) for chunk in clip.chunks(4)) == clip.info.frames == count
