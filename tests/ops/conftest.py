from collections.abc import Iterator
from pathlib import Path

import pytest

from wan_vae.ops.cpu.build import build_kernels, library


@pytest.fixture(scope="session")
def built_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library, in a cache that nothing uses unless it asks for `kernels`."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        path = build_kernels()
    library.cache_clear()
    return path


@pytest.fixture(scope="class")
def kernels(built_kernels: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(built_kernels.parents[1]))
        library.cache_clear()
        assert library() is not None
        yield built_kernels
    library.cache_clear()
