"""The databases that a service may keep its records in."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support import SUPPORT
from tests.support.postgres_server import PostgresMissingError, PostgresServer, postgres_server
from tests.support.tinker_management import ManagementService, management_service

from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.tinker.records.records import Records, sqlite_url


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, started when the first test asks for it."""
    try:
        with postgres_server() as server:
            yield server
    except PostgresMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny(trainer_environment: EngineEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, with 300 tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    program = SUPPORT / "make_tiny_model.py"
    subprocess.run([trainer_environment.executable, program, folder], check=True, timeout=120)
    return folder


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "records.sqlite")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
async def records(database_url: str) -> AsyncIterator[Records]:
    """Records in each kind of database."""
    opened = await Records.open(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[ManagementService]:
    """A service with the routes that manage what was trained."""
    records = await Records.open(sqlite_url(tmp_path / "records.sqlite"))
    try:
        async with management_service(tmp_path, records=records) as service:
            yield service
    finally:
        await records.close()
