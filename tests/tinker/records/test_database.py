from __future__ import annotations

import asyncio
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from tests.support.postgres_server import PostgresServer
from tests.support.tinker_records import a_model

from enginehouse.core.errors import ConfigurationError, EnginehouseError, StoreError
from enginehouse.tinker.records.records import Records, sqlite_url
from enginehouse.tinker.records.tables import VERSION_TABLE, Table


def _plain(url: str):
    """A connection of our own to the same database."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(parsed)


@pytest.mark.slow
async def test_migrations_make_the_tables(database_url: str):
    """Exactly those that the code uses, on both kinds of databases."""
    await (await Records.open(database_url)).close()
    engine = _plain(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


async def test_a_newer_layout_is_refused(database_url: str):
    """And nothing in it is changed."""
    await (await Records.open(database_url)).close()
    engine = _plain(database_url)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '999'"))
    with pytest.raises(StoreError, match="newer") as refused:
        await Records.open(database_url)
    assert "999" in str(refused.value)
    assert "upgrade Enginehouse" in str(refused.value)
    with engine.connect() as connection:
        assert connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == "999"
    engine.dispose()


async def test_services_that_start_at_once(database_url: str):
    """Four of them open an empty database and write into it: the tables are made once."""
    services = await asyncio.gather(*(Records.open(database_url) for _ in range(4)))
    try:
        models = [a_model(f"ses-{number}:train:0") for number in range(40)]
        await asyncio.gather(
            *(services[number % 4].add_model(model) for number, model in enumerate(models))
        )
        for records in services:
            assert (await records.models("ada")).total == 40
    finally:
        for records in services:
            await records.close()


async def test_a_failed_migration_leaves_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
):
    """The next start begins where this one did."""
    from alembic.operations import Operations

    create = Operations.create_table

    def fail(self: Operations, name: str, *columns: object, **options: object) -> object:
        if name == "tinker_checkpoints":
            raise StoreError("stopped in the middle")
        return create(self, name, *columns, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_table", fail)
        with pytest.raises(StoreError, match="in the middle"):
            await Records.open(database_url)
    engine = _plain(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert context.get_current_heads() == ()
        assert engine.dialect.get_table_names(connection) == []
    engine.dispose()
    records = await Records.open(database_url)
    await records.add_model(a_model())
    await records.close()


async def test_sqlite_is_private_and_uses_a_log(tmp_path: Path):
    """Only its owner may read the file, and readers do not wait for a writer."""
    file = tmp_path / "new" / "records.sqlite"
    records = await Records.open(sqlite_url(file))
    await records.add_model(a_model())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with closing(sqlite3.connect(file)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(5):
            assert (await records.models("ada")).total == 1
        waiting = asyncio.create_task(records.add_model(a_model("ses-2:train:0")))
        await asyncio.sleep(0)
        assert not waiting.done()
        other.rollback()
        await waiting
    assert (await records.models("ada")).total == 2
    await records.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("my hunter2 database", "not a URL"),
        ("mysql://root:hunter2@host/db", "mysql://root:***@host/db"),
        ("sqlite://", "only a SQLite file"),
        ("sqlite:////srv/records?password=hunter2", "no arguments"),
        ("postgresql://ada:hunter2@127.0.0.1:1/db", "cannot be read or written"),
        ("postgresql:///db?host=/nowhere&password=hunter2", "cannot be read or written"),
        ("sqlite:////proc/nothing/records.sqlite", "cannot use the records"),
    ],
)
async def test_what_cannot_be_opened(url: str, said: str):
    """A clear error, which does not repeat the URL's password."""
    with pytest.raises((ConfigurationError, StoreError)) as refused:
        await Records.open(url)
    assert said in str(refused.value)
    assert "hunter2" not in _chain(refused.value)


@pytest.mark.postgres
async def test_the_name_hides_secrets(postgres: PostgresServer):
    """The name is what logs show."""
    url = postgres.new_database()
    records = await Records.open(url.replace("@", ":hunter2@") + "&sslpassword=hunter2")
    assert records.name.replace("%2F", "/") == url.replace("://tinker@", "+psycopg://tinker:***@")
    await records.close()


@pytest.mark.slow
@pytest.mark.postgres
async def test_a_restarted_server(postgres: PostgresServer):
    """What was written before is there, and nothing has to be done."""
    records = await Records.open(postgres.new_database())
    await records.add_model(a_model())
    await asyncio.to_thread(postgres.restart)
    assert (await records.models("ada")).entries == (a_model(),)
    await records.add_model(a_model("ses-2:train:0"))
    await records.close()


async def test_a_database_that_fails_later(tmp_path: Path):
    """The error names the database and the reason, and nothing that users stored."""
    records = await Records.open(sqlite_url(tmp_path / "records.sqlite"))
    with closing(sqlite3.connect(tmp_path / "records.sqlite")) as other:
        other.execute("DROP TABLE tinker_models")
    with pytest.raises(StoreError, match=r"records\.sqlite(.|\n)*no such table") as failed:
        await records.add_model(a_model(user_metadata={"secret": "hunter2"}))
    assert "hunter2" not in _chain(failed.value)
    await records.close()


async def test_a_broken_database(tmp_path: Path):
    """A file that is not a database is refused, and left as it was."""
    file = tmp_path / "records.sqlite"
    file.write_bytes(b"this is not a database, but something that somebody wrote here" * 40)
    before = file.read_bytes()
    with pytest.raises(StoreError, match="not a database"):
        await Records.open(sqlite_url(file))
    assert file.read_bytes() == before


def _chain(error: BaseException | None) -> str:
    """All that a log would show of an error and of its causes."""
    text = ""
    while error is not None:
        text += f"{error}{error.args}"
        if isinstance(error, EnginehouseError):
            text += f"{error.why}{error.fix}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text
