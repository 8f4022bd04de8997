"""Which of the launched jobs `enginehouse launch ls runs` lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

import pytest
from tests.support.command_line import Finished, House

from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.base import Environment, JobSpec
from enginehouse.jobs.records import JobRecord, JobRecords
from enginehouse.store.layout import Layout

JOBS = (("a" * 16, "local", 1), ("b" * 16, "slurm", 26), ("c" * 16, "local", 24 * 40))  # hours ago


@pytest.fixture(autouse=True)
def jobs(house: House) -> None:
    """Three jobs that were launched here."""
    records = JobRecords(replace(Layout.from_environment(), state=house.home / "state"))
    for name, executor, hours in JOBS:
        job = JobSpec(
            id=name,
            name="check",
            folder=PurePosixPath("/jobs") / name,
            command=("true",),
            files={},
            environment=Environment(values={}, secrets=frozenset()),
        )
        record = JobRecord(
            id=name,
            name="check",
            created=datetime.now(UTC) - timedelta(hours=hours),
            executor=executor,
            settings={},
            job=job,
            secret_sources={},
            model="m",
            tasks=("gsm8k",),
            configuration="",
        )
        records.add(record)


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        ((), "abc"),
        (("--limit", "2"), "ab"),
        (("--executor", "local"), "ac"),
        (("--since", "2d"), "ab"),
        (("--since", "90m"), "a"),
        (("--since", "2020-01-01", "--limit", "1"), "a"),
        (("--since", "9999-01-01"), ""),
        (("--since", "2d", "--executor", "slurm"), "b"),
    ],
)
def test_jobs_are_chosen(call: Callable[..., Finished], words: tuple[str, ...], listed: str):
    """The latest first."""
    found = call("launch", "ls", "runs", *words, "--json").report
    assert "".join(record["id"][0] for record in found) == listed


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", "5w", "", "999999d"])
def test_what_is_no_time_is_refused(call: Callable[..., Finished], since: str):
    """With what would be one."""
    done = call("launch", "ls", "runs", "--since", since)
    assert done.code == ConfigurationError.exit_code
    assert "2d, 5h, 30m" in done.err


def test_none_is_like_that(call: Callable[..., Finished]):
    """It does not read as if nothing had ever been launched."""
    assert "none of the 3 jobs" in call("launch", "ls", "runs", "--executor", "ray").err
