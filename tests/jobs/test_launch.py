"""Launching, refreshing and resuming, on a fake executor that says what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from enginehouse.core.errors import ConfigurationError, JobError
from enginehouse.jobs.base import Handle, JobSpec, JobState, JobStatus
from enginehouse.jobs.executors.registry import EXECUTORS
from enginehouse.jobs.launch import fetch, job_logs, kill, launch, refresh, resume
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.plan import LaunchPlan, plan_launch
from enginehouse.jobs.records import JobRecord, JobRecords
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_executor import FakeCluster, FakeExecutor, close_cluster

SECRET = "hf_notARealTokenButLongEnoughToBeOne"


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeCluster]:
    """The cluster of every executor called fake."""
    cluster = FakeCluster()
    monkeypatch.setattr(FakeExecutor, "cluster", cluster)
    target = "enginehouse.testing.fake_executor:FakeExecutor"
    monkeypatch.setitem(EXECUTORS._entries, "fake", target)
    yield cluster
    await close_cluster(cluster)


@pytest.fixture
def context(layout: Layout) -> Context:
    """The test's own records."""
    return Context(layout=layout)


def plan(folder: Path, *, script: str = "exit 0", task: str = "ifeval") -> LaunchPlan:
    """A job of the fake executor that runs a script instead of an evaluation."""
    values = {
        "defaults": [{"deployment": "vllm"}, "_self_"],
        "execution": {
            "type": "fake",
            "output_dir": str(folder / "jobs"),
            "command": ["/bin/sh", "-c", script, "sh"],
        },
        "deployment": {"checkpoint_path": "model", "tensor_parallel_size": 1},
        "env_vars": {"HF_TOKEN": "host:MY_TOKEN"},
        "evaluation": {"tasks": [{"name": task}]},
    }
    file = folder / "launch.yaml"
    file.write_text(yaml.safe_dump(values))
    return plan_launch(read_launch(file))


async def end(record: JobRecord, context: Context) -> JobRecord:
    """The record after the job's end."""
    async with asyncio.timeout(30):
        while not record.status.state.ended:
            (record,) = await refresh([record], context)
    return record


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)


async def test_a_job_that_fails_has_its_last_error(tmp_path, cluster, context):
    """The command's own words, as far as they belong to the error."""
    said = (
        "printf 'start\\nerror: first\\nmore\\nerror: the end\\n  why:  so\\n  next: do\\nbye\\n'"
    )
    record = await launch(plan(tmp_path, script=f"{said}; exit 4"), context)
    ended = await end(record, context)
    assert ended.status == JobStatus(state=JobState.FAILED, exit_code=4)
    assert ended.diagnosis == "the end\n  why:  so\n  next: do"
    assert JobRecords(context.layout).find(record.id) == ended


async def test_secrets_reach_the_job_and_no_record(tmp_path, cluster, context):
    """Only the name of the variable that held them is kept."""
    script = 'test "$(printenv HF_TOKEN | wc -c)" -eq 37 && echo "it is there"'
    record = await launch(plan(tmp_path, script=script), context)
    ended = await end(record, context)
    assert ended.status.state is JobState.COMPLETE
    said = "".join([piece async for piece in job_logs(ended, context, follow=True)])
    assert said == "it is there\n"
    assert ended.secret_sources == {"HF_TOKEN": "MY_TOKEN"}
    assert SECRET.encode() not in context.layout.jobs.read_bytes()
    folder = await fetch(ended, context, into=tmp_path / "into")
    assert (folder / "plan.yaml").exists()


@pytest.mark.slow
async def test_resuming(tmp_path, cluster, context, monkeypatch):
    """Only what has ended; with the secrets of now; the same folder and files."""
    record = await launch(plan(tmp_path, script="sleep 60"), context)
    with pytest.raises(JobError) as running:
        await resume(record, context)
    assert running.value.kind == "running"
    killed = await kill(record, context)
    assert killed.status.state is JobState.CANCELLED
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(ConfigurationError):
        await resume(killed, context)
    monkeypatch.setenv("MY_TOKEN", SECRET)
    again = await resume(killed, context)
    assert again.submissions == 2
    assert cluster.submitted[0] == cluster.submitted[1]
    await kill(again, context)


async def test_a_job_is_resumed_once(tmp_path, cluster, context):
    """Of two commands that do it at the same time, one is refused."""
    ended = await end(await launch(plan(tmp_path, script="exit 3"), context), context)
    both = await asyncio.gather(
        resume(ended, context), resume(ended, context), return_exceptions=True
    )
    (refused,) = [one for one in both if isinstance(one, JobError)]
    assert refused.kind == "running"
    assert len(cluster.submitted) == 2
    (again,) = [one for one in both if isinstance(one, JobRecord)]
    await end(again, context)


class Renaming(FakeExecutor):
    """One whose handles differ from one submission to the next, and that finds the last."""

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Say a new name."""
        await super().submit(job, secrets=secrets)
        name = f"{job.id}-{len(self.cluster.submitted)}"
        self.cluster.said[name] = JobStatus(state=JobState.RUNNING)
        return self._handle(job, name)

    async def find(self, job: JobSpec) -> Handle:
        """The last submission."""
        return self._handle(job, f"{job.id}-{len(self.cluster.submitted)}")

    async def cancel(self, handle: Handle) -> None:
        """Note that it ended."""
        self.cluster.said[handle.reference["id"]] = JobStatus(state=JobState.CANCELLED)

    def _handle(self, job: JobSpec, name: str) -> Handle:
        return Handle(executor=self.name, folder=str(job.folder), reference={"id": name})


@pytest.mark.slow
async def test_a_command_that_is_killed_while_it_resumes(tmp_path, cluster, context, monkeypatch):
    """The job that it submitted is found and can be ended, although its handle was not noted."""
    monkeypatch.setattr(EXECUTORS, "load", lambda name: Renaming)
    first = await kill(await launch(plan(tmp_path), context), context)
    records, update = JobRecords(context.layout), JobRecords.update

    def killed_before(self: JobRecords, job: str, **changes: object) -> JobRecord:
        if "handle" in changes:
            raise ZeroDivisionError
        return update(self, job, **changes)

    with monkeypatch.context() as killing:
        killing.setattr(JobRecords, "update", killed_before)
        with pytest.raises(ZeroDivisionError):
            await resume(first, context)
    new = f"{first.id}-2"
    cluster.said[new] = JobStatus(state=JobState.RUNNING)  # after a kill, nothing tidies up
    left = records.find(first.id)
    assert left.handle == first.handle
    (seen,) = await refresh([left], context)
    assert seen.status.state is JobState.RUNNING
    with pytest.raises(JobError):
        await resume(left, context)
    killed = await kill(records.find(first.id), context)
    assert killed.status.state is JobState.CANCELLED
    assert cluster.said[new].state is JobState.CANCELLED
    again = await resume(killed, context)
    assert again.handle is not None
    assert (again.handle.reference["id"], again.resuming) == (f"{first.id}-3", False)


@pytest.mark.slow
async def test_many_jobs_are_asked_for_at_once(tmp_path, cluster, context):
    """One question for all jobs of a place, and their order is kept."""
    jobs = [await launch(plan(tmp_path), context) for _ in range(5)]
    cluster.questions = 0
    refreshed = await refresh(jobs[::-1], context)
    assert [job.id for job in refreshed] == [job.id for job in jobs[::-1]]
    assert cluster.questions == 1


async def test_what_an_executor_has_forgotten(tmp_path, cluster, context):
    """The end that was seen stays; before that, the state is unknown."""
    record = await launch(plan(tmp_path, script="sleep 60"), context)
    cluster.said[record.id] = JobStatus(state=JobState.UNKNOWN, reason="never heard of it")
    (unknown,) = await refresh([record], context)
    assert unknown.status.state is JobState.UNKNOWN
    cluster.said[record.id] = JobStatus(state=JobState.INTERRUPTED, reason="NODE_FAIL")
    (seen,) = await refresh([unknown], context)
    cluster.said[record.id] = JobStatus(state=JobState.UNKNOWN)
    (kept,) = await refresh([seen], context)
    assert kept.status == JobStatus(state=JobState.INTERRUPTED, reason="NODE_FAIL")


async def test_a_launcher_that_ended_before_it_submitted(tmp_path, cluster, context):
    """Its job is unknown after a while, and can be submitted by resuming it."""
    record = await launch(plan(tmp_path), context)
    records = JobRecords(context.layout)
    being = records.update(record.id, handle=None, status=JobStatus(state=JobState.PENDING))
    (waiting,) = await refresh([being], context)
    assert waiting.status.state is JobState.PENDING
    with pytest.raises(JobError) as early:
        await kill(waiting, context)
    assert early.value.kind == "not_submitted"
    old = records.update(record.id, created=record.created - timedelta(hours=1))
    (unknown,) = await refresh([old], context)
    assert unknown.status.state is JobState.UNKNOWN
    with pytest.raises(JobError) as never:
        await kill(unknown, context)
    assert never.value.kind == "not_submitted"
    again = await resume(unknown, context)
    assert (await end(again, context)).status.state is JobState.COMPLETE


async def test_an_executor_that_does_not_answer(tmp_path, cluster, context, monkeypatch):
    """Its jobs are unknown for now, the user is told, and nothing of that is stored."""
    record = await launch(plan(tmp_path), context)
    ended = await end(record, context)

    async def refuse(self, handles):
        raise JobError("nobody is at home", kind="unreachable")

    monkeypatch.setattr(FakeExecutor, "statuses", refuse)
    told: list[str] = []
    (now,) = await refresh([ended], Context(layout=context.layout, notify=told.append))
    assert now.status.state is JobState.UNKNOWN
    assert len(told) == 1
    assert JobRecords(context.layout).find(record.id) == ended


@pytest.mark.slow
async def test_a_record_of_another_version(tmp_path, cluster, context):
    """It does not keep the states of other jobs from being asked for."""
    old, new = [await launch(plan(tmp_path), context) for _ in range(2)]
    ended = await end(new, context)
    settings = {**old.settings, "key_of_another_version": 1}
    unreadable = JobRecords(context.layout).update(old.id, settings=settings)
    told: list[str] = []
    both = await refresh([unreadable, new], Context(layout=context.layout, notify=told.append))
    assert [job.status.state for job in both] == [JobState.UNKNOWN, ended.status.state]
    assert "key_of_another_version" in told[0]


@pytest.mark.slow
async def test_nothing_is_left_of_a_launch_that_fails(tmp_path, cluster, context, monkeypatch):
    """A refusal, a task that no harness here has, a secret that is not set, and a cancellation."""
    cluster.refusal = JobError("no such partition", kind="unknown_partition")
    with pytest.raises(JobError) as refused:
        await launch(plan(tmp_path), context)
    assert refused.value.kind == "unknown_partition"
    cluster.refusal = None
    with pytest.raises(ConfigurationError):
        await launch(plan(tmp_path, task="garak.garak"), context)
    with monkeypatch.context() as without:
        without.delenv("MY_TOKEN")
        with pytest.raises(ConfigurationError):
            await launch(plan(tmp_path), context)
    assert cluster.submitted == []
    submit = FakeExecutor.submit
    begun = asyncio.Event()

    async def slowly(self, job, *, secrets):
        begun.set()
        await asyncio.sleep(0.1)
        return await submit(self, job, secrets=secrets)

    monkeypatch.setattr(FakeExecutor, "submit", slowly)
    launching = asyncio.create_task(launch(plan(tmp_path, script="sleep 60"), context))
    await begun.wait()
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    (job,) = cluster.submitted
    assert cluster.ends[job.id].state is JobState.CANCELLED
    assert JobRecords(context.layout).all() == []
