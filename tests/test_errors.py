"""Messages stay on one line, whatever a file's name or content holds."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_vae.errors import ClipError, printable

FORGED = "clip\nwan-vae: all is well\x1b[2J\udcff\u2028.mp4"


@given(st.text(st.characters(), max_size=3000))
def test_printable_of_any_text_is_one_short_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) < 1100
    shown.encode()


def test_printable_of_plain_text_is_the_text() -> None:
    assert printable("Schäfer (1)/клип 你好.mp4") == "Schäfer (1)/клип 你好.mp4"


def test_user_error_with_control_characters_is_escaped() -> None:
    assert str(ClipError(f"{FORGED} is empty.")) == ("clip\\nwan-vae: all is well\\x1b[2J\\udcff\\u2028.mp4 is empty.")


def test_warning_with_control_characters_is_escaped(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("wan_vae").warning("%s has sound.", FORGED)
    assert "\n" not in caplog.messages[0]
    assert "\\x1b" in caplog.messages[0]
