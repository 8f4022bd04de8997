"""What is remembered of every job that was launched from here, in one SQLite file.

Launchers write at the same time, and may run on several machines that share a home. So the file
keeps SQLite's rollback journal: its write-ahead log needs memory that only one machine has.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

import msgspec

from enginehouse.core.errors import JobError, StoreError, nearest
from enginehouse.jobs.base import Handle, JobSpec, JobState, JobStatus
from enginehouse.store.layout import Layout
from enginehouse.store.private import open_private

_VERSION = 1
_PATIENCE = 30.0  # seconds that another launcher may take for its own change


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job, as it was launched and as it was last seen. No value of a secret is in it.

    `settings` are those of its executor. `secret_sources` names, for each secret of the job, the
    variable of the launcher's environment that holds it. `handle` is None until it is submitted;
    with `resuming` it may be that of an earlier submission, because a command is submitting the
    job again, or was killed while it did.
    `diagnosis` is what the job itself said last about its failure. `configuration` is the resolved
    launch file, redacted.
    """

    id: str
    name: str
    created: datetime
    executor: str
    settings: Mapping[str, Any]
    job: JobSpec
    secret_sources: Mapping[str, str]
    model: str
    tasks: tuple[str, ...]
    configuration: str
    handle: Handle | None = None
    status: JobStatus = JobStatus(state=JobState.PENDING, reason="it is being submitted")
    diagnosis: str | None = None
    submissions: int = 0
    resuming: bool = False

    @property
    def short_id(self) -> str:
        """The beginning of the id, as it is shown."""
        return self.id[:8]


class JobRecords:
    """The records. A method is one transaction: it blocks for milliseconds. Raises StoreError."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._path = layout.jobs

    def add(self, record: JobRecord) -> None:
        """Remember a new job."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO jobs (id, created, record) VALUES (?, ?, ?)",
                (record.id, record.created.isoformat(), _encode(record)),
            )

    def update(self, job_id: str, **changes: Any) -> JobRecord:
        """Change fields of a job's record; other launchers' changes of other fields are kept."""
        with self._transaction() as connection:
            row = connection.execute("SELECT record FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None:
                raise _unknown(job_id, [])
            record = msgspec.structs.replace(_decode(row), **changes)
            connection.execute("UPDATE jobs SET record = ? WHERE id = ?", (_encode(record), job_id))
        return record

    def remove(self, job_id: str) -> None:
        """Forget a job. Idempotent."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def find(self, reference: str) -> JobRecord:
        """The job with that id, or that unique beginning of an id.

        Raises JobError, kind "unknown" or "ambiguous".
        """
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT record FROM jobs WHERE substr(id, 1, ?) = ? ORDER BY created DESC",
                (len(reference), reference.lower()),
            ).fetchall()
            ids = [r[0] for r in connection.execute("SELECT id FROM jobs ORDER BY created DESC")]
        if not reference or not rows:
            raise _unknown(reference, ids)
        if len(rows) > 1:
            names = ", ".join(_decode(row).id for row in rows[:5])
            raise JobError(
                f"{len(rows)} jobs begin with {reference!r}",
                fix=f"give more of the id: {names}",
                kind="ambiguous",
            )
        return _decode(rows[0])

    def all(self) -> list[JobRecord]:
        """Every job, the latest first."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT record FROM jobs ORDER BY created DESC").fetchall()
        return [_decode(row) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._layout.make_private(self._path.parent)
            os.close(open_private(self._path, os.O_RDWR))  # SQLite's own mode follows the umask
            with closing(
                sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)
            ) as connection:
                connection.execute("BEGIN IMMEDIATE")
                self._prepare(connection)
                try:
                    yield connection
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the records of jobs in {self._path} cannot be used",
                why=str(error),
                fix=_fix(error),
            ) from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise StoreError(
                f"{self._path} was written by a newer version of Enginehouse",
                fix="use that version, or move the file away",
            )
        if version == 0:
            connection.execute(
                "CREATE TABLE jobs (id TEXT PRIMARY KEY, created TEXT NOT NULL, "
                "record BLOB NOT NULL)"
            )
            connection.execute(f"PRAGMA user_version = {_VERSION}")


def _encode(record: JobRecord) -> bytes:
    return msgspec.json.encode(record, enc_hook=str)  # paths


def _decode(row: tuple[bytes]) -> JobRecord:
    try:
        return msgspec.json.decode(row[0], type=JobRecord, dec_hook=lambda kind, text: kind(text))
    except msgspec.DecodeError as error:
        raise StoreError(
            "the record of a job cannot be read",
            why=str(error),
            fix="another program changed it: restore the file from a backup",
        ) from error


def _unknown(reference: str, ids: list[str]) -> JobError:
    if not ids:
        return JobError(
            f"there is no job {reference!r}",
            why="no job was launched from here",
            fix="launch one with `enginehouse launch run`, or set ENGINEHOUSE_HOME to where it "
            "was launched",
            kind="unknown",
        )
    close = nearest(reference, ids)
    return JobError(
        f"there is no job {reference!r}",
        fix=(f"did you mean {close}? " if close else "")
        + "`enginehouse launch ls runs` lists them",
        kind="unknown",
    )


def _fix(error: Exception) -> str:
    text = str(error)
    if "full" in text:
        return "free disk space, then repeat the command"
    if "locked" in text:
        return (
            "another launcher has locked it, or it is on a network file "
            "system without locks: try again"
        )
    if "not a database" in text or "malformed" in text:
        return "restore it from a backup, or move it away: running jobs are not affected"
    return "check the permissions, or set ENGINEHOUSE_HOME to another folder"
