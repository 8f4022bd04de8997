"""An executor for tests: jobs are processes of this one, and a test may say how they are."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Artifact, Environment, Handle, JobSpec, JobState, JobStatus
from enginehouse.jobs.executors.base import ExecutionSettings
from enginehouse.processes.process import Command, Process, hold_process
from enginehouse.runtime.context import Context

_POLL = 0.02


class FakeSettings(ExecutionSettings):
    """Jobs of the fake executor."""

    type: str = "fake"


@dataclass
class FakeCluster:
    """What the fake executors of one test share: the machine that their jobs run on."""

    said: dict[str, JobStatus] = field(default_factory=dict)
    """What is answered for a job, by its id, instead of the truth."""
    refusal: JobError | None = None
    """What every submission raises."""
    submitted: list[JobSpec] = field(default_factory=list)
    questions: int = 0
    """How often statuses were asked for."""
    processes: dict[str, list[Process]] = field(default_factory=dict)
    ends: dict[str, JobStatus] = field(default_factory=dict)
    watchers: list[asyncio.Task[None]] = field(default_factory=list)


class FakeExecutor:
    """Runs jobs of a FakeCluster. Closing it leaves them running."""

    name = "fake"
    settings_class = FakeSettings
    cluster = FakeCluster()
    """That of executors which a registry made."""

    def __init__(
        self,
        settings: FakeSettings,
        context: Context,
        *,
        cluster: FakeCluster | None = None,
    ) -> None:
        del settings, context
        self._cluster = cluster or self.cluster

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close nothing."""

    def render(self, job: JobSpec) -> Sequence[Artifact]:
        """The job's files and its command line."""
        files = [Artifact(name=name, text=text) for name, text in job.files.items()]
        return [*files, Artifact(name="command", text=shlex.join(job.command) + "\n")]

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Start the job's processes."""
        if self._cluster.refusal is not None:
            raise self._cluster.refusal
        _write_files(job)
        commands = [(job.command, job.environment)]
        node = job.resources.nodes
        for companion in job.companions:
            words = tuple(
                w.replace("{node}", str(node)).replace("{head}", "127.0.0.1")
                for w in companion.command
            )
            commands.append((words, companion.environment))
            node += companion.nodes
        processes = [
            _start(argv, environment, job=job, secrets=secrets) for argv, environment in commands
        ]
        self._cluster.submitted.append(job)
        self._cluster.processes[job.id] = processes
        self._cluster.ends.pop(job.id, None)
        self._cluster.watchers.append(asyncio.create_task(self._watch(job, processes)))
        return Handle(executor=self.name, folder=str(job.folder), reference={"id": job.id})

    async def statuses(self, handles: Sequence[Handle]) -> Sequence[JobStatus]:
        """What the test says, or else the truth."""
        self._cluster.questions += 1
        return [self._status(handle.reference["id"]) for handle in handles]

    async def logs(self, handle: Handle, *, follow: bool) -> AsyncIterator[str]:
        """The log, in pieces."""
        with (Path(handle.folder) / "log.txt").open(errors="replace") as log:
            while True:
                ended = not follow or self._status(handle.reference["id"]).state.ended
                if text := log.read():
                    yield text
                if ended:
                    return
                await asyncio.sleep(_POLL)

    async def fetch(self, handle: Handle, into: Path) -> Path:
        """The job's own folder."""
        del into
        return Path(handle.folder)

    async def cancel(self, handle: Handle) -> None:
        """Kill the job's processes."""
        name = handle.reference["id"]
        self._cluster.ends.setdefault(name, JobStatus(state=JobState.CANCELLED))
        self._cluster.said.pop(name, None)
        for process in self._cluster.processes.get(name, ()):
            await process.stop(grace=0.2)

    def _status(self, name: str) -> JobStatus:
        if name in self._cluster.said:
            return self._cluster.said[name]
        if name in self._cluster.ends:
            return self._cluster.ends[name]
        running = name in self._cluster.processes
        return JobStatus(state=JobState.RUNNING if running else JobState.UNKNOWN)

    async def _watch(self, job: JobSpec, processes: Sequence[Process]) -> None:
        """Note how the job ends, and end what is left of it."""
        while all(process.exit_code() is None for process in processes):  # noqa: ASYNC110
            await asyncio.sleep(_POLL)
        code = processes[0].exit_code()
        for process in processes:
            await process.stop(grace=0.2)
        state = JobState.COMPLETE if code == 0 else JobState.FAILED
        if code in (-signal.SIGTERM, -signal.SIGKILL):
            state = JobState.INTERRUPTED
        self._cluster.ends.setdefault(job.id, JobStatus(state=state, exit_code=code))


def _write_files(job: JobSpec) -> None:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in job.files.items():
        (folder / name).write_text(text)


def _start(
    argv: Sequence[str], environment: Environment, *, job: JobSpec, secrets: Mapping[str, str]
) -> Process:
    env = {
        **os.environ,
        **{name: os.environ.get(source, "") for name, source in environment.from_machine.items()},
        **environment.values,
        **{name: secrets[name] for name in environment.secrets},
    }
    script = f'cd {shlex.quote(str(job.folder))}\n{job.before}\nexec "$@"'
    command = Command(argv=("/bin/sh", "-c", script, "sh", *argv), env=env)
    with hold_process(command, log=Path(job.folder) / "log.txt") as held:
        return held.begin()


async def close_cluster(cluster: FakeCluster) -> None:
    """End every job of a cluster, and its watchers."""
    for watcher in cluster.watchers:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
    for processes in cluster.processes.values():
        for process in processes:
            await process.stop(grace=0.2)
