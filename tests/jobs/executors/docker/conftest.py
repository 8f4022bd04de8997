"""A Docker daemon for the tests of this folder, started when the first one asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.docker_daemon import Daemon, DockerMissingError, docker_daemon


@pytest.fixture(scope="session")
def _daemon() -> Iterator[Daemon]:
    try:
        with docker_daemon() as daemon:
            yield daemon
    except DockerMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def daemon(_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """The daemon that this process's docker talks to; without containers before and after."""
    for name, value in _daemon.environment.items():
        monkeypatch.setenv(name, value)
    yield _daemon
    _daemon.clear()
