"""The fake executor passes the conformance suite; one that breaks a promise does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import PurePosixPath

import pytest

from enginehouse.jobs.base import Handle, JobState, JobStatus
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, check_executor
from enginehouse.testing.fake_executor import (
    FakeCluster,
    FakeExecutor,
    FakeSettings,
    close_cluster,
)

SETTINGS = FakeSettings(output_dir="jobs")


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """A cluster of the test's own, on which nothing is left."""
    cluster = FakeCluster()
    yield cluster
    await close_cluster(cluster)


@pytest.mark.slow
async def test_the_fake_passes(tmp_path, cluster: FakeCluster):
    """Every case."""
    assert len(CASES) >= 10
    failures = await check_executor(
        lambda: FakeExecutor(SETTINGS, Context(), cluster=cluster), folder=PurePosixPath(tmp_path)
    )
    assert failures == []


class _Careless(FakeExecutor):
    """Forgets to end jobs, and takes every end for a success."""

    async def cancel(self, handle: Handle) -> None:
        self._cluster.ends[handle.reference["id"]] = JobStatus(state=JobState.CANCELLED)

    async def statuses(self, handles: Sequence[Handle]) -> Sequence[JobStatus]:
        statuses = await super().statuses(handles)
        return [JobStatus(state=JobState.COMPLETE) if s.exit_code else s for s in statuses]


@pytest.mark.slow
async def test_broken_promises_are_found(tmp_path, cluster: FakeCluster):
    """And each is named with its promise."""
    failures = await check_executor(
        lambda: _Careless(SETTINGS, Context(), cluster=cluster),
        folder=PurePosixPath(tmp_path),
        patience=10,
        only={"completes", "fails_with_the_exit_code", "kill_leaves_nothing"},
    )
    assert [failure.name for failure in failures] == [
        "fails_with_the_exit_code",
        "kill_leaves_nothing",
    ]
    assert "no process left" in failures[1].detail
