"""The records of jobs: several writers, references, and files that cannot be used."""

from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

import pytest

from enginehouse.core.errors import JobError, StoreError
from enginehouse.jobs.base import Environment, Handle, JobSpec, JobState, JobStatus
from enginehouse.jobs.records import JobRecord, JobRecords
from enginehouse.store.layout import Layout


def record(job_id: str, **changes: Any) -> JobRecord:
    """A job that was not submitted yet."""
    job = JobSpec(
        id=job_id,
        name="check",
        folder=PurePosixPath("/jobs") / job_id,
        command=("true",),
        files={"plan.yaml": "model: m\n"},
        environment=Environment(values={"A": "1"}, secrets=frozenset({"B"})),
    )
    values: dict[str, Any] = {
        "id": job_id,
        "name": "check",
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "executor": "local",
        "settings": {"output_dir": "jobs"},
        "job": job,
        "secret_sources": {"B": "MY_B"},
        "model": "m",
        "tasks": ("gsm8k",),
        "configuration": "",
    }
    return JobRecord(**values | changes)


def test_what_is_added_is_found_as_it_was(layout: Layout):
    """By its id and by the beginning of it; a change keeps the rest."""
    records = JobRecords(layout)
    added = record("0123456789abcdef")
    records.add(added)
    assert records.find("0123456789abcdef") == added
    assert records.find("0123") == added
    handle = Handle(executor="local", folder="/jobs/x", reference={"pid": "1"})
    changed = records.update(
        added.id, handle=handle, status=JobStatus(state=JobState.FAILED, exit_code=4)
    )
    assert records.find("0123") == changed
    assert changed.job == added.job
    assert changed.status.exit_code == 4
    records.remove(added.id)
    assert records.all() == []


def test_references_that_name_no_single_job(layout: Layout):
    """One is unknown, one is ambiguous; an empty one names nothing."""
    records = JobRecords(layout)
    with pytest.raises(JobError) as none:
        records.find("01")
    assert none.value.kind == "unknown"
    for number in range(2):
        records.add(record(f"01234567{number:08x}"))
    with pytest.raises(JobError) as several:
        records.find("0123")
    assert several.value.kind == "ambiguous"
    for reference in ("", "%", "0123456700000002"):
        with pytest.raises(JobError) as unknown:
            records.find(reference)
        assert unknown.value.kind == "unknown"


@pytest.mark.slow
def test_many_writers_at_once(layout: Layout):
    """Nothing is lost, and each change of another field is kept."""
    ids = [f"{number:016x}" for number in range(24)]
    created = datetime(2026, 1, 1, tzinfo=UTC)

    def work(number: int) -> None:
        records = JobRecords(layout)
        records.add(record(ids[number], created=created + timedelta(seconds=number)))
        records.update(ids[number], submissions=number)
        records.update(ids[number], diagnosis=str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(len(ids))))
    stored = JobRecords(layout).all()
    assert [one.id for one in stored] == ids[::-1]
    assert [(one.submissions, one.diagnosis) for one in stored] == [
        (number, str(number)) for number in range(len(ids))
    ][::-1]


def test_only_the_owner_may_read_them(layout: Layout):
    """Whatever the umask."""
    JobRecords(layout).add(record("0123456789abcdef"))
    assert stat.S_IMODE(layout.jobs.stat().st_mode) == 0o600


def test_files_that_cannot_be_used(layout: Layout):
    """No database, a newer version's, and a record that is broken: each is refused and kept."""
    layout.jobs.parent.mkdir(parents=True)
    layout.jobs.write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(StoreError):
        JobRecords(layout).all()
    assert layout.jobs.read_bytes().startswith(b"not a database")
    layout.jobs.unlink()
    JobRecords(layout).add(record("0123456789abcdef"))
    with closing(sqlite3.connect(layout.jobs)) as connection, connection:
        connection.execute("UPDATE jobs SET record = '{'")
    with pytest.raises(StoreError):
        JobRecords(layout).all()
    with closing(sqlite3.connect(layout.jobs)) as connection, connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError):
        JobRecords(layout).all()
