"""A Ray cluster for the tests of this folder, started when the first one asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.ray_cluster import LocalCluster, local_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Two nodes."""
    with local_cluster() as cluster:
        yield cluster
