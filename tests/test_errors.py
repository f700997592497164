"""Messages stay on one line, whatever a file's name or content holds; shortages of memory are told from faults."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wan_vae.errors import ClipError, memory_shortage, printable

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
    logging.getLogger("wan_vae").warning("%s has audio.", FORGED)
    assert "\n" not in caplog.messages[0]
    assert "\\x1b" in caplog.messages[0]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried a lot.\nSee the manual."),
            "CUDA out of memory. Tried a lot.",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "[enforce fail] DefaultCPUAllocator: can't allocate memory",
        ),
        (MemoryError(), "MemoryError"),
        (OSError(12, "Cannot allocate memory", "a.png"), "Cannot allocate memory"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (ImportError("libtorch_cpu.so: failed to map segment"), "libtorch_cpu.so: failed to map segment"),
        (ImportError("No module named 'x'"), None),
        (OSError(2, "No such file or directory", "memory"), None),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (RuntimeError("unsupported memory format option"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_memory_shortage_returns_the_first_line(error: Exception, line: str | None) -> None:
    assert memory_shortage(error) == line


def test_memory_shortage_recognizes_torch_on_a_cpu() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory_shortage(error.value) is not None
