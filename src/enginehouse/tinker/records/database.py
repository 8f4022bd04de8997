"""A SQLite file or a Postgres server, brought up to date, and asked in threads of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from sqlalchemy import Connection, Engine, Select, create_engine, event, func, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from enginehouse.core.errors import ConfigurationError, StoreError, TinkerError
from enginehouse.store.private import open_private
from enginehouse.tinker.records.tables import VERSION_TABLE, Table

Answer = TypeVar("Answer")
Row = TypeVar("Row", bound=Table)

_PATIENCE: Final = 30  # seconds to wait for another process that writes
_CONNECTIONS: Final = 4  # to a Postgres server; a SQLite file has one
_MIGRATION_LOCK: Final = 7_201_428_114  # any number that other programs do not lock
_MIGRATIONS: Final = Path(__file__).with_name("migrations")


class Database:
    """Runs functions with a SQLAlchemy Session in threads of its own, each in one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._secrets = _secrets(engine.url)
        threads = 1 if engine.dialect.name == "sqlite" else _CONNECTIONS
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tinker-records")

    @classmethod
    async def open(cls, url: str) -> Database:
        """Connect and bring the tables up to date.

        Raises ConfigurationError for a URL that cannot be used, and StoreError for a database that
        cannot be reached or was written by a newer version. Neither tells the URL's secrets.
        """
        database = cls(_engine(_parse(url)))
        try:
            await database._run(partial(_upgrade, database._engine))
        except BaseException:
            await database.close()
            raise
        return database

    @property
    def name(self) -> str:
        """The database's URL without secrets."""
        return _public_name(self._engine.url)

    async def read(self, question: Callable[[Session], Answer]) -> Answer:
        """What `question` returns. Raises StoreError, and what `question` raises.

        Raises TinkerError (400) for a value that the database cannot take.
        """
        return await self._run(partial(self._ask, question, writes=False))

    async def write(self, change: Callable[[Session], Answer]) -> Answer:
        """As `read`, and commit what `change` did, unless it raises.

        `change` may be called twice, in two transactions. A cancelled caller does not stop it.
        """
        return await self._run(partial(self._ask, change, writes=True))

    async def get(self, table: type[Row], key: str) -> Row | None:
        """The row of that primary key. It is detached: changing it changes nothing."""
        return await self.read(lambda session: session.get(table, key))

    async def rows(self, query: Select[Row]) -> list[Row]:
        """What the query selects; detached."""
        return await self.read(lambda session: list(session.scalars(query)))

    async def page(
        self, query: Select[Row], *, offset: int, limit: int | None
    ) -> tuple[list[Row], int]:
        """A part of what the query selects, and how many rows it selects in all."""

        def ask(session: Session) -> tuple[list[Row], int]:
            rows = list(session.scalars(query.offset(offset).limit(limit)))
            count = select(func.count()).select_from(query.order_by(None).subquery())
            return rows, session.scalar(count) or 0

        return await self.read(ask)

    async def close(self) -> None:
        """Let what has begun finish, and disconnect. Idempotent."""
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()

    def _ask(self, work: Callable[[Session], Answer], *, writes: bool) -> Answer:
        try:
            return self._ask_once(work, writes=writes)
        except IntegrityError:  # another connection added the same row in between; now it is there
            return self._ask_once(work, writes=writes)

    def _ask_once(self, work: Callable[[Session], Answer], *, writes: bool) -> Answer:
        engine = self._engine.execution_options(writes=writes)
        with Session(engine, expire_on_commit=False) as session:
            answer = work(session)
            if writes:
                session.commit()
            return answer

    async def _run(self, work: Callable[[], Answer]) -> Answer:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except DataError as error:  # of Postgres: a text that is too long, or has a NUL
            raise TinkerError(
                "the request has a value that cannot be recorded", why=str(error.orig).strip()
            ) from None
        except SQLAlchemyError as error:
            raise self._refused(error) from None  # its arguments may hold the URL
        except OSError as error:
            raise StoreError(
                f"cannot use the records in {self.name}", why=error.strerror or str(error)
            ) from error

    def _refused(self, error: SQLAlchemyError) -> StoreError:
        reason = str(getattr(error, "orig", None) or error).strip()
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        return StoreError(
            f"the records in {self.name} cannot be read or written",
            why=reason,
            fix="check the URL of --database, that the database is running, and that its disk is "
            "not full",
        )


def _parse(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigurationError(
            "--database is not a URL",  # which may hold a password, and is not repeated
            fix="such as sqlite:////srv/tinker/records.sqlite or postgresql://user@host/name",
        ) from None
    if url.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    is_file = url.drivername == "sqlite" and url.database not in (None, "", ":memory:")
    if is_file and not url.query:
        return url
    raise ConfigurationError(
        f"the records cannot be kept in {_public_name(url)}",
        why="only a SQLite file, with no arguments, and Postgres are supported",
        fix="use sqlite:////path/to/file or postgresql://user@host/name",
    )


def _engine(url: URL) -> Engine:
    if url.drivername == "sqlite":
        return _sqlite_engine(url)
    return create_engine(
        url,
        hide_parameters=True,  # an error must not show what users stored
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_pre_ping=True,  # the server may have been restarted
        connect_args={"connect_timeout": 10},
    )


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": _PATIENCE})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # this driver would begin transactions too late
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    # A transaction that reads first and writes later cannot wait for another writer, so a
    # transaction that is going to write says so at the beginning.
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _upgrade(engine: Engine) -> None:
    """Run the migrations that are missing; one process at a time."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with _alone(engine.url), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK}
            )
        options = {"version_table": VERSION_TABLE}
        present = set(MigrationContext.configure(connection, opts=options).get_current_heads())
        if newer := present - known:
            raise StoreError(
                f"the records in {_public_name(engine.url)} were written by a newer version of"
                " Enginehouse",
                why=f"their schema version is {', '.join(sorted(newer))}, the newest known here is"
                f" {ScriptDirectory.from_config(config).get_current_head()}",
                fix="upgrade Enginehouse, or give another --database",
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _alone(url: URL) -> AbstractContextManager[object]:
    """Switching a SQLite file to its write-ahead log fails, and does not wait, if another does."""
    if url.drivername != "sqlite" or url.database is None:
        return nullcontext()
    file = Path(url.database)
    file.parent.mkdir(parents=True, exist_ok=True)
    os.close(open_private(file, os.O_RDWR))  # its log files get the same permissions
    return FileLock(f"{file}.lock", timeout=_PATIENCE)


def _public_name(url: URL) -> str:
    """The URL without its password, also where that is an argument."""
    query = {key: value for key, value in url.query.items() if "pass" not in key}
    return url.set(query=query).render_as_string(hide_password=True)


def _secrets(url: URL) -> list[str]:
    arguments = [str(value) for key, value in url.query.items() if "pass" in key]
    return [secret for secret in [url.password, *arguments] if secret]
