"""Answers that come while the work is done."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the server's packages are missing: pip install 'wan-vae[serve]'")

import requests

from tests.serving.running import free_port, latents_of, serving, small_vae
from wan_vae.io import read_clip, write_clip
from wan_vae.serving.limits import is_authorized


def params_of(latents: torch.Tensor) -> dict[str, object]:
    return {"shape": list(latents.shape), "dtype": "float32"}


def test_decode_stream_gives_a_fragmented_clip_while_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, seen = small_vae(), threading.Event()
    latents = latents_of(vae, count=40, side=16)
    stream = vae.decode_stream

    def waiting(*args: object, **options: object) -> object:
        for index, part in enumerate(stream(*args, **options)):
            assert index < 30 or seen.wait(20)  # the last parts, after the client has got the first bytes
            yield part

    monkeypatch.setattr("wan_vae.inference.chunk_size._MAX_LATENTS", 1)
    monkeypatch.setattr(vae, "decode_stream", waiting)
    with serving(vae) as address:
        url = f"{address}/decode/stream?fps=24"
        answer = requests.post(url, latents.numpy().tobytes(), params=params_of(latents), stream=True)
        pieces = answer.iter_content(None)
        data = next(pieces) + next(pieces)
        seen.set()
        data += b"".join(pieces)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert data.count(b"moof") > 1
    (tmp_path / "a.mp4").write_bytes(data)
    video, info = read_clip(tmp_path / "a.mp4")
    local = vae.decode(latents, raw=True)
    assert (video.shape, info.fps) == (local.shape, 24)
    assert (video - local).abs().mean() < 0.2


def test_encode_stream_gives_the_local_latents_of_an_uploaded_clip(tmp_path: Path) -> None:
    vae = small_vae()
    clip = torch.rand(1, 3, 9, 16, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_clip(tmp_path / "a.mkv", clip, fps=24, lossless=True)
    with serving(vae) as address, (tmp_path / "a.mkv").open("rb") as file:
        answer = requests.post(f"{address}/encode/stream", file)
    assert answer.status_code == 200
    shape = json.loads(answer.headers["shape"])
    latents = torch.frombuffer(bytearray(answer.content), dtype=torch.float32).reshape(shape).transpose(0, 1)[None]
    video, _ = read_clip(tmp_path / "a.mkv")
    torch.testing.assert_close(latents, vae.posterior(video).mean, atol=1e-5, rtol=0)


def test_a_stream_that_fails_ends_too_early_and_the_server_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small_vae()
    latents = latents_of(vae, count=40, side=16)
    stream = vae.decode_stream

    def failing(*args: object, **options: object) -> object:
        for index, part in enumerate(stream(*args, **options)):
            if index == 36:
                raise MemoryError
            yield part

    monkeypatch.setattr("wan_vae.inference.chunk_size._MAX_LATENTS", 1)
    monkeypatch.setattr(vae, "decode_stream", failing)
    with serving(vae) as address:
        with pytest.raises(requests.RequestException):
            requests.post(f"{address}/decode/stream", latents.numpy().tobytes(), params=params_of(latents))
        assert requests.get(f"{address}/healthz").json()["status"] == "ok"


def test_a_client_that_goes_ends_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, parts = small_vae(), []

    def endless(*args: object, **options: object) -> object:
        while len(parts) < 2000:
            parts.append(1)
            time.sleep(0.01)
            yield torch.zeros(1, 3, 1, 128, 128)

    monkeypatch.setattr(vae, "decode_stream", endless)
    latents = latents_of(vae, side=64)
    with serving(vae) as address:
        url = f"{address}/decode/stream"
        with requests.post(url, latents.numpy().tobytes(), params=params_of(latents), stream=True) as answer:
            next(answer.iter_content(1))
        while requests.get(f"{address}/healthz").json()["admitted"]:
            time.sleep(0.01)
        assert len(parts) < 2000


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_sigterm_in_mid_request_ends_the_request_and_then_the_server() -> None:
    port, latents = free_port(), torch.randn(1, 16, 8, 32, 32)
    command = [sys.executable, "-m", "wan_vae", "serve", "--device", "cpu", "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address, statuses = f"http://127.0.0.1:{port}", []
        while True:
            try:
                requests.get(f"{address}/healthz")
                break
            except requests.ConnectionError:
                assert server.poll() is None
                time.sleep(0.05)
        params = params_of(latents) | {"output_type": "pt"}

        def ask() -> None:
            statuses.append(requests.post(f"{address}/decode", latents.numpy().tobytes(), params=params).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        while (health := requests.get(f"{address}/healthz").json())["admitted"] < 3 or not health["running"]:
            time.sleep(0.005)
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert server.wait(60) == -signal.SIGTERM
        assert sorted(statuses) == [200, 503, 503]
        assert "Traceback" not in server.stderr.read()
    finally:
        server.kill()
        server.stderr.close()


def test_other_hosts_need_a_token_or_an_acknowledgement(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wan_vae", "serve", "--host", "0.0.0.0"]
    env = {name: value for name, value in os.environ.items() if name != "WAN_VAE_TOKEN"}
    finished = subprocess.run(command, capture_output=True, text=True, env=env)
    assert finished.returncode == 2
    assert "WAN_VAE_TOKEN" in finished.stderr


@pytest.mark.parametrize(
    ("header", "expected"),
    [("Bearer t\u00f6ken", True), ("bearer t\u00f6ken", True), ("Bearer", False), (None, False), ("Basic eDp5", False)],
)
def test_is_authorized_takes_the_token_only(header: str | None, expected: bool) -> None:
    assert is_authorized(header, "t\u00f6ken") is expected
