from collections.abc import Iterator

import pytest

from tests.sharding.workers import Workers


@pytest.fixture(scope="package")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Give four processes: the fewest that have neighbors across a corner."""
    workers = Workers(4, tmp_path_factory.mktemp("group"))
    yield workers
    workers.close()
