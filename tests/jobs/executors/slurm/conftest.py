"""A Slurm cluster for the tests of this folder, started when the first one asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.slurm_cluster import SlurmCluster, SlurmMissingError, slurm_cluster


@pytest.fixture(scope="session")
def _cluster() -> Iterator[SlurmCluster]:
    try:
        with slurm_cluster() as cluster:
            yield cluster
    except SlurmMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def cluster(_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, which this process's Slurm programs talk to; without jobs before and after."""
    for name, value in _cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield _cluster
    _cluster.clear()
