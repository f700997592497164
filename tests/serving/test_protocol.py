"""diffusers' own client against the server."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the server's packages are missing: pip install 'wan-vae[serve]'")
pytest.importorskip("diffusers", reason="diffusers is missing")

from diffusers.utils.remote_utils import remote_decode, remote_encode
from diffusers.video_processor import VideoProcessor

from tests.serving.running import latents_of, serving, small_vae
from wan_vae import WanVAE
from wan_vae.io import read_clip


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return small_vae()


@pytest.fixture(scope="module")
def address(vae: WanVAE) -> Iterator[str]:
    with serving(vae) as address:
        yield address


def local_frames(video: torch.Tensor) -> np.ndarray:
    """Return what diffusers makes of a video, (T, H, W, 3) in uint8."""
    pictures = VideoProcessor().postprocess_video(video, output_type="pil")[0]
    return np.stack([np.asarray(picture) for picture in pictures])


def test_remote_decode_of_raw_latents_gives_the_local_video(vae: WanVAE, address: str) -> None:
    latents = latents_of(vae)
    video = remote_decode(f"{address}/decode", latents, do_scaling=False, output_type="pt", return_type="pt")
    torch.testing.assert_close(video, vae.decode(latents, raw=True), atol=1e-5, rtol=0)


def test_remote_decode_of_two_clips_gives_both(vae: WanVAE, address: str) -> None:
    latents = torch.cat([latents_of(vae), -latents_of(vae)])
    video = remote_decode(f"{address}/decode", latents, do_scaling=False, output_type="pt", return_type="pt")
    torch.testing.assert_close(video, vae.decode(latents, raw=True), atol=1e-5, rtol=0)


def test_remote_decode_with_do_scaling_takes_normalized_latents(vae: WanVAE, address: str) -> None:
    latents = latents_of(vae)
    video = remote_decode(f"{address}/decode", latents, output_type="pt", return_type="pt")
    torch.testing.assert_close(video, vae.decode(latents), atol=1e-5, rtol=0)


def test_remote_decode_with_factors_undoes_them(vae: WanVAE, address: str) -> None:
    latents = latents_of(vae)
    options = {"scaling_factor": 0.5, "shift_factor": 0.25, "output_type": "pt", "return_type": "pt"}
    video = remote_decode(f"{address}/decode", (latents - 0.25) * 0.5, **options)
    torch.testing.assert_close(video, vae.decode(latents, raw=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_remote_decode_of_half_precision_latents_reads_their_bytes(
    vae: WanVAE, address: str, dtype: torch.dtype
) -> None:
    latents = latents_of(vae).to(dtype)
    video = remote_decode(f"{address}/decode", latents, do_scaling=False, output_type="pt", return_type="pt")
    torch.testing.assert_close(video, vae.decode(latents.float(), raw=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"output_type": "pt", "partial_postprocess": True},
        {"output_type": "pt", "processor": VideoProcessor()},
        {"output_type": "pil", "processor": VideoProcessor()},
    ],
)
def test_remote_decode_to_pictures_gives_those_of_diffusers(vae: WanVAE, address: str, options: dict) -> None:
    latents = latents_of(vae)
    pictures = remote_decode(f"{address}/decode", latents, do_scaling=False, return_type="pil", **options)
    got = np.stack([np.asarray(picture) for picture in pictures]).astype(int)
    assert np.abs(got - local_frames(vae.decode(latents, raw=True))).max() <= 1


@pytest.mark.parametrize(("image_format", "most"), [("png", 1), ("jpg", 60)])
def test_remote_decode_of_one_latent_gives_an_image(vae: WanVAE, address: str, image_format: str, most: int) -> None:
    latents = latents_of(vae, count=1, side=8)
    picture = remote_decode(f"{address}/decode", latents, do_scaling=False, image_format=image_format)
    assert picture.format == {"png": "png", "jpg": "jpeg"}[image_format]
    difference = np.asarray(picture).astype(int) - local_frames(vae.decode(latents, raw=True))[0]
    assert np.abs(difference).max() <= most


def test_remote_decode_to_mp4_gives_a_clip_of_the_frames(vae: WanVAE, address: str, tmp_path) -> None:
    latents = latents_of(vae, count=3, side=16)
    options = {"do_scaling": False, "output_type": "mp4", "return_type": "mp4"}
    (tmp_path / "a.mp4").write_bytes(remote_decode(f"{address}/decode?fps=24", latents, **options))
    video, info = read_clip(tmp_path / "a.mp4")
    assert video.shape == vae.decode(latents, raw=True).shape
    assert info.fps == 24


def test_remote_encode_of_a_video_gives_the_local_latents(vae: WanVAE, address: str) -> None:
    video = torch.rand(1, 3, 5, 8, 8) * 2 - 1
    latents = remote_encode(f"{address}/encode", video)
    torch.testing.assert_close(latents, vae.posterior(video).mean, atol=1e-5, rtol=0)
    scaled = remote_encode(f"{address}/encode", video, scaling_factor=0.5, shift_factor=0.25)
    torch.testing.assert_close(scaled, (latents - 0.25) * 0.5, atol=1e-5, rtol=0)
    normalized = remote_encode(f"{address}/encode?do_scaling=true", video)
    torch.testing.assert_close(normalized, vae.encode(video), atol=1e-5, rtol=0)


def test_remote_encode_of_an_image_gives_the_local_latents(vae: WanVAE, address: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    latents = remote_encode(f"{address}/encode", Image.fromarray(levels))
    video = torch.from_numpy(levels).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    torch.testing.assert_close(latents, vae.posterior(video).mean, atol=1e-5, rtol=0)


def test_remote_decode_of_a_wrong_shape_raises_what_the_server_says(address: str) -> None:
    with pytest.raises(RuntimeError, match="Latents of this model are"):
        remote_decode(f"{address}/decode", torch.zeros(1, 7, 1, 4, 4), do_scaling=False)
