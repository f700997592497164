"""`wan-vae serve`: what is refused before anything is served."""

import socket
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.cli.test_errors import assert_one_sentence

pytest.importorskip("fastapi", reason="the server's packages are missing: pip install 'wan-vae[serve]'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-body", "foo"), "--max-body is 'foo'"),
        (("--memory", "abc"), "'abc'"),
        (("--host", "256.0.0.1", "--insecure"), "--host 256.0.0.1"),
    ],
)
def test_options_that_cannot_be_are_refused_before_it_serves(
    options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outcome = run(capsys, "serve", "--port", port, "--device", "cpu", *options)
    assert_one_sentence(outcome, words)
    assert "serving" not in outcome.err


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run(capsys, "serve", "--port", port, "--checkpoint", tmp_path / "nowhere.safetensors")
    assert_one_sentence(outcome, f"--host 127.0.0.1 --port {port} (Address already in use)")
