"""Requests that are not served: each gets its status, and the server lives."""

import errno
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the server's packages are missing: pip install 'wan-vae[serve]'")

import requests

from tests.serving.running import latents_of, serving, small_vae
from wan_vae import WanVAE

VAE = small_vae()
LATENTS = latents_of(VAE)
BODY = LATENTS.numpy().tobytes()
PARAMS = {"shape": [1, 3, 2, 4, 4], "dtype": "float32", "output_type": "pt"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(VAE, body=2**14, pixels=32 * 32, frames=20) as address:
        yield address


def assert_lives(address: str) -> None:
    # A request has its place until its answer has left, which a client does not see.
    deadline = time.monotonic() + 20
    while (health := requests.get(f"{address}/healthz").json())["admitted"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert health["status"] == "ok"
    assert requests.post(f"{address}/decode", BODY, params=PARAMS).status_code == 200


@pytest.mark.parametrize(
    ("changes", "body", "status", "words"),
    [
        ({}, BODY[:-1], 422, "make 384"),
        ({}, BODY + b"x", 422, "make 384"),
        ({}, b"", 422, "make 384"),
        ({"shape": None}, BODY, 422, "shape"),
        ({"dtype": None}, BODY, 422, "dtype"),
        ({"dtype": "float64"}, BODY, 422, "float64"),
        ({"dtype": "uint8"}, BODY, 422, "uint8"),
        ({"shape": [1, 3, 2, 4]}, BODY, 422, "five sizes"),
        ({"shape": [1, 3, 2, 4, -4]}, BODY, 422, "five sizes"),
        ({"shape": [1, 3, 0, 4, 4]}, BODY, 422, "five sizes"),
        ({"shape": [2**40, 2**40, 2**40, 2**40, 2**40]}, BODY, 413, "bytes"),
        ({"shape": [1, 3, 1, 17, 16]}, BODY, 413, "pixels"),
        ({"shape": [1, 3, 12, 4, 4]}, BODY, 413, "frames"),
        ({"shape": [1, 3, 6, 16, 16]}, BODY, 413, "bytes"),
        ({"scaling_factor": 0}, BODY, 422, "scaling_factor"),
        ({"scaling_factor": "nan"}, BODY, 422, "scaling_factor"),
        ({"do_scaling": "true", "shift_factor": 3}, BODY, 422, "shift_factor (3.0)"),
        ({"output_type": "mp4", "fps": 1e-12}, BODY, 422, "frames a second"),
        ({"output_type": "gif"}, BODY, 422, "output_type is gif: "),
        ({"shape": "1,3,2,4,4"}, BODY, 422, "shape is 1,3,2,4,4: "),
        ({"fps": "0", "output_type": "mp4"}, BODY, 422, "fps is 0"),
        ({"output_type": "mp4", "shape": [2, 3, 1, 4, 4]}, BODY, 422, "one clip"),
        ({}, torch.full((96,), torch.nan).numpy().tobytes(), 422, "NaN"),
    ],
)
def test_malformed_requests_get_a_clear_status(
    address: str, changes: dict, body: bytes, status: int, words: str
) -> None:
    answered = requests.post(f"{address}/decode", body, params=PARAMS | changes)
    assert answered.status_code == status
    assert words in answered.text
    assert_lives(address)


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(address: str) -> None:
    answered = requests.post(f"{address}/encode", (b"x" * 2**12 for _ in range(6)))
    assert answered.status_code == 413
    assert_lives(address)


def test_a_body_that_is_no_clip_gets_a_clear_status(address: str) -> None:
    for path in ("encode", "encode/stream"):
        answered = requests.post(f"{address}/{path}", b"no clip")
        assert (answered.status_code, list(answered.json())) == (422, ["detail"])
    assert_lives(address)


def test_requests_without_the_token_are_refused_before_anything_else() -> None:
    with serving(VAE, token="secret") as address:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !"}, {"Authorization": "x"}):
            answered = requests.post(f"{address}/decode", BODY, headers=headers)
            assert (answered.status_code, answered.headers["www-authenticate"]) == (401, "Bearer")
        assert requests.get(f"{address}/metrics").status_code == 401
        assert requests.get(f"{address}/healthz").status_code == 200
        ours = {"Authorization": "Bearer secret"}
        assert requests.post(f"{address}/decode", BODY, params=PARAMS, headers=ours).status_code == 200
        in_url = address.replace("//", "//any:secret@")  # all that diffusers' client can pass
        assert requests.post(f"{in_url}/decode", BODY, params=PARAMS).status_code == 200


def test_requests_above_the_queue_get_429_and_all_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    vae = small_vae()
    stream = vae.decode_stream

    def slow(*args: object, **options: object) -> object:
        free.wait(20)
        return stream(*args, **options)

    monkeypatch.setattr(vae, "decode_stream", slow)
    with serving(vae, waiting=3) as address:
        answers: list[int] = []

        def ask() -> None:
            answers.append(requests.post(f"{address}/decode", BODY, params=PARAMS).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        while requests.get(f"{address}/healthz").json()["admitted"] < 3:  # the event loop is not blocked
            time.sleep(0.005)
        ask()
        assert answers == [429]
        free.set()
        for thread in threads:
            thread.join()
        assert answers == [429, 200, 200, 200]


def test_a_request_that_takes_too_long_gets_504(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small_vae()
    monkeypatch.setattr(vae, "decode_stream", lambda *args, **options: time.sleep(0.6) or iter(()))
    with serving(vae, seconds=0.3) as address:
        assert requests.post(f"{address}/decode", BODY, params=PARAMS).status_code == 504
        monkeypatch.undo()
        time.sleep(0.4)
        assert_lives(address)


@pytest.mark.parametrize("path", ["decode", "encode"])
def test_whole_answers_end_their_work_when_time_is_over(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, parts = small_vae(), []

    def endless(*args: object, **options: object) -> object:
        while len(parts) < 500:
            parts.append(1)
            time.sleep(0.01)
            yield torch.zeros(1, 3 if path == "decode" else 6, 1, *((8, 8) if path == "decode" else (4, 4)))

    monkeypatch.setattr(vae, f"{path}_stream", endless)
    body = BODY if path == "decode" else torch.zeros(1, 3, 501, 8, 8).numpy().tobytes()
    params = PARAMS if path == "decode" else {"shape": [1, 3, 501, 8, 8], "dtype": "float32"}
    with serving(vae, seconds=0.3) as address:
        assert requests.post(f"{address}/{path}", body, params=params).status_code == 504
        while requests.get(f"{address}/healthz").json()["admitted"]:
            time.sleep(0.01)
        assert len(parts) < 500


@pytest.mark.parametrize("failing", [1, 2])
def test_a_request_that_finds_no_file_gives_its_place_back(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, made = tempfile.TemporaryFile, []

    def fails_once() -> object:
        made.append(1)
        if len(made) == failing:
            raise OSError(24, "Too many open files")
        return opened()

    with serving(small_vae(), waiting=1) as address:
        monkeypatch.setattr(tempfile, "TemporaryFile", fails_once)
        assert requests.post(f"{address}/decode", BODY, params=PARAMS).status_code == 500
        assert requests.post(f"{address}/decode", BODY, params=PARAMS).status_code == 200


class FullDisk:
    """A file on a full disk, which says so when it is written to and when it is closed."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self._file.close()
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failing", [1, 2])
def test_a_request_that_finds_no_room_gets_507_and_gives_its_place_back(
    failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, made = tempfile.TemporaryFile, []

    def is_full_once() -> object:
        made.append(1)
        return FullDisk(opened()) if len(made) == failing else opened()

    with serving(small_vae(), waiting=1) as address:
        monkeypatch.setattr(tempfile, "TemporaryFile", is_full_once)
        full = requests.post(f"{address}/decode", BODY, params=PARAMS)
        assert full.status_code == 507
        assert full.json()["detail"] == "The server has no room for this request; try again later."
        assert requests.post(f"{address}/decode", BODY, params=PARAMS).status_code == 200


def test_a_request_for_which_the_memory_of_the_host_is_too_little_gets_503(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small_vae()
    monkeypatch.setattr(vae, "decode_stream", lambda *args, **options: torch.empty(2**55))
    with serving(vae) as address:
        assert requests.post(f"{address}/decode", BODY, params=PARAMS).status_code == 503


def test_many_clients_at_once_lose_no_request() -> None:
    def expected(vae: WanVAE) -> bytes:
        return vae.decode(LATENTS).numpy().tobytes()

    with serving(VAE) as address:
        answers: list[bytes] = []
        params = PARAMS | {"do_scaling": "True"}
        threads = [
            threading.Thread(
                target=lambda: answers.extend(
                    requests.post(f"{address}/decode", BODY, params=params).content for _ in range(3)
                )
            )
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == 48 * [expected(VAE)]
        metrics = requests.get(f"{address}/metrics").text
        assert 'wan_vae_requests_total{path="/decode",status="200"} 48.0' in metrics


def test_an_mp4_larger_than_the_format_takes_is_refused() -> None:
    vae = small_vae()
    side = 2**14 // vae.config.spatial_compression + 1
    body = torch.zeros(1, vae.config.latent_channels, 1, 1, side)
    params = {"shape": list(body.shape), "dtype": "float32", "output_type": "mp4", "fps": 24}
    with serving(vae, pixels=10**6) as address:
        answer = requests.post(f"{address}/decode", body.numpy().tobytes(), params=params)
    assert answer.status_code == 422
    assert "mp4 holds sides of 16384; ask for raw frames" in answer.json()["detail"]
