import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import av
import hypothesis
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.training.runs import Material

# Nothing may need a network, and nothing may be found in a cache that a fresh machine does not have.
os.environ["HF_HUB_OFFLINE"] = "1"
_cache = tempfile.TemporaryDirectory(prefix="wan-vae-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name
# Tests that empty the cache would otherwise compile for seconds each; those of the build ask for it.
os.environ["WAN_VAE_BUILD_KERNELS"] = "0"

# Two processes test side by side; threads of both would take the cores from each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has a command in the background ignore Ctrl-C, and `nohup` has it ignore the end of a terminal; the programs
# under test would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Timings of numerical code on shared machines say nothing.
_SETTINGS = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow], "derandomize": True}
hypothesis.settings.register_profile("quick", max_examples=30, **_SETTINGS)
hypothesis.settings.register_profile("thorough", **_SETTINGS)


def pytest_configure(config: pytest.Config) -> None:
    """Try more examples where the slow tests run."""
    selected = config.getoption("markexpr")
    hypothesis.settings.load_profile("quick" if selected == "not slow" else "thorough")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Seed torch, so that a test that fails does so in every run."""
    import torch  # here, after the number of threads is set

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels() -> None:
    """Build the CPU kernels, where there is a compiler, in the cache of this session."""
    from wan_vae.errors import UserError
    from wan_vae.ops.cpu.build import build_kernels

    with suppress(UserError):
        build_kernels()


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> "Material":
    """What training recipes name."""
    # Imported here, for it takes seconds that most tests need not wait for.
    from tests.training.runs import make_material

    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Start Debian's Chromium under Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to test in a browser")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("apt-get install chromium to test in a browser")
    arguments = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    )
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=list(arguments))
        yield started
        started.close()


@pytest.fixture
def own_accelerate() -> Iterator[None]:
    """Make a test that trains a process of its own to accelerate."""
    from tests.training.runs import fresh_accelerate

    with fresh_accelerate():
        yield


@pytest.fixture(autouse=True)
def _ffmpeg_is_silent() -> None:
    # torchvision, which diffusers imports, lets FFmpeg's messages into the log, where tests count those of ours.
    av.logging.set_level(None)
