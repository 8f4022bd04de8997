"""Evaluates checkpoints as jobs of a launch file, several at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec

from enginehouse.core.errors import ConfigurationError, EnginehouseError, JobError
from enginehouse.evaluation import summarise
from enginehouse.jobs.base import JobState
from enginehouse.jobs.configuration import LaunchConfig
from enginehouse.jobs.launch import fetch, launch, refresh, resume
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.plan import RUN, plan_launch
from enginehouse.jobs.records import JobRecord, JobRecords
from enginehouse.results.curve import Kind
from enginehouse.results.summary import Report
from enginehouse.runtime.context import Context
from enginehouse.store.runs import open_run
from enginehouse.watch.checkpoints import Look
from enginehouse.watch.configuration import WatchSettings
from enginehouse.watch.curves import scores_of
from enginehouse.watch.evaluations import Pending
from enginehouse.watch.journal import AttemptRecord, Status, WatchJournal

_SUBMISSIONS = 3  # of one job, if its executor interrupts it
_PLACEHOLDER = Path("/the-checkpoint-that-appears")
_HERE = ("local", "docker")  # executors whose jobs share this machine


@dataclass(frozen=True, kw_only=True)
class LaunchedWatch:
    """A folder, and the launch file of the jobs that evaluate what is in it.

    `base` is the file's own model, None if it names none: then the checkpoints have no base.
    `jobs` is the largest number of jobs at the same time, None for no limit.
    """

    settings: WatchSettings
    file: Path
    overrides: tuple[str, ...]
    base: str | None
    seed: int
    jobs: int | None
    values: dict[str, Any]

    @classmethod
    def read(
        cls, settings: WatchSettings, *, file: Path, overrides: Sequence[str], jobs: int | None
    ) -> Self:
        """Check the launch file, with a checkpoint and by itself. Raises ConfigurationError."""
        probe = read_launch(file, overrides=[*overrides, *_words(_PLACEHOLDER, Kind.CHECKPOINT)])
        if not probe.deployment.deployed:
            raise ConfigurationError(
                f"{file} deploys no server, so checkpoints cannot be served",
                fix="choose a deployment in the file, such as `- deployment: vllm`",
            )
        if (reason := probe.not_acted_on.get("deployment.checkpoint_path")) is not None:
            raise ConfigurationError(
                f"{file} would serve the same model for every checkpoint",
                why=f"deployment.checkpoint_path has no effect in it: {reason}",
                fix="correct deployment.command",
            )
        own: LaunchConfig | None = None
        with suppress(ConfigurationError):  # it names no model: see `probe` for the rest
            own = read_launch(file, overrides=overrides)
        here = probe.execution.type in _HERE
        return cls(
            settings=settings.with_absolute_paths(),
            file=file.absolute(),
            overrides=tuple(overrides),
            base=own.deployment.model if own else None,
            seed=plan_launch(probe).evaluation.settings.seed,
            jobs=1 if jobs is None and here else jobs,
            values={
                "engine": probe.deployment.type,
                "evaluation": probe.evaluation.model_dump(
                    mode="json", exclude={"env_vars": True, "tasks": {"__all__": {"env_vars"}}}
                ),
            },
        )

    def asked(self) -> dict[str, Any]:
        """What makes it a curve of its own."""
        return {"directory": str(self.settings.directory), "model": self.base, **self.values}

    def config_of(self, pending: Pending) -> LaunchConfig:
        """The launch configuration for one of them. Raises ConfigurationError."""
        folder = pending.folder
        words = _words(folder.path, folder.kind) if folder else []
        return read_launch(self.file, overrides=[*self.overrides, *words])


class SubmittedEvaluations:
    """The evaluations of one watch as jobs. Those of an earlier watch are followed, too."""

    def __init__(self, launched: LaunchedWatch, context: Context, *, journal: WatchJournal) -> None:
        self._launched = launched
        self._context = context
        self._notify = context.notify
        self._journal = journal
        self._records = JobRecords(context.layout)
        self._pending: dict[str, Pending] = {}
        self._followed = {r.key: r for r in journal.begun if r.job and self._job(r) is not None}
        self._asked: float | None = None
        self._refused: float | None = None

    @property
    def following(self) -> frozenset[str]:
        """What has a job that has not ended."""
        return frozenset(self._followed)

    @property
    def has_room(self) -> bool:
        """Whether another job may be submitted now."""
        if self._refused is not None and not self._is_due(self._refused):
            return False
        return self._launched.jobs is None or len(self._followed) < self._launched.jobs

    def expect(self, look: Look) -> None:
        """Nothing: each job has a server of its own."""

    async def evaluate(self, pending: Pending) -> AttemptRecord | None:
        """Submit its job, or the one that was interrupted before."""
        before = self._journal.of(pending.key)
        job = self._job(before) if before and before.digest == pending.digest else None
        try:
            if job is not None:
                job = await resume(job, self._context)
                begun = self._begin(pending, job.id)
            else:
                # Hydra has global state, so this is not done in a thread
                plan = plan_launch(self._launched.config_of(pending))
                begun = self._begin(pending, plan.job.id)
                job = await launch(plan, self._context)
        except JobError as error:
            self._notify(f"{pending.name}: no job was submitted, trying again later: {error}")
            self._refused = time.monotonic()
            return None
        self._refused = None
        self._notify(f"{pending.name}: job {job.short_id} is submitted")
        self._followed[pending.key] = begun
        self._pending[pending.key] = pending
        return begun

    async def ended(self) -> Sequence[AttemptRecord]:
        """What is known of the jobs that have ended."""
        if not self._followed or (self._asked is not None and not self._is_due(self._asked)):
            return ()
        self._asked = time.monotonic()
        jobs = {key: self._job(begun) for key, begun in self._followed.items()}
        known = {key: job for key, job in jobs.items() if job is not None}
        fresh = await refresh(list(known.values()), self._context)
        states = dict(zip(known, fresh, strict=True))
        ended = []
        for key, begun in list(self._followed.items()):
            job = states.get(key)
            record = await self._settled(begun, job) if job else _failed(begun, "its job is gone")
            if record is not None:
                del self._followed[key]
                if not await self._changed(key, record):
                    ended.append(record)
        return ended

    async def close(self) -> None:
        """Leave the jobs alone."""
        if self._followed:
            self._notify(
                f"{len(self._followed)} jobs keep running unwatched; run the same command to "
                "follow them again, or `enginehouse launch kill JOB` to stop one"
            )

    def _begin(self, pending: Pending, job: str) -> AttemptRecord:
        """Recorded before the job is submitted, so that a kill does not make a second one."""
        begun = msgspec.structs.replace(pending.record(Status.BEGUN), job=job)
        self._journal.add(begun)
        return begun

    def _job(self, attempt: AttemptRecord) -> JobRecord | None:
        """The attempt's job; None if it was never submitted or is not known any more."""
        try:
            job = self._records.find(attempt.job) if attempt.job else None
        except JobError:
            return None
        return job if job and job.handle is not None else None

    async def _settled(self, begun: AttemptRecord, job: JobRecord) -> AttemptRecord | None:
        """The attempt with its end; None while the job goes on."""
        status = job.status
        if not status.state.ended:
            return None
        folder = report = None
        with suppress(EnginehouseError):
            into = self._journal.folder / "jobs" / job.id
            folder = await fetch(job, self._context, into=into) / RUN
            report = await asyncio.to_thread(self._report, folder)
        if report is not None and report.complete:
            return msgspec.structs.replace(
                begun,
                at=datetime.now(UTC),
                status=Status.EVALUATED,
                run=str(folder),
                scores=scores_of(report),
            )
        if status.state is JobState.UNKNOWN and folder is None:
            return None  # its executor did not answer
        if status.state is JobState.INTERRUPTED and job.submissions < _SUBMISSIONS:
            with suppress(JobError):
                await resume(job, self._context)
                self._notify(f"{begun.name}: job {job.short_id} was interrupted, and is resumed")
            return None
        why = job.diagnosis or status.reason or "it left no complete run"
        return _failed(
            begun,
            f"the job {job.short_id} is {status.state}: {why}\n"
            f"  next: enginehouse launch logs {job.short_id}",
        )

    def _report(self, folder: Path) -> Report:
        return summarise(open_run(self._context.layout, str(folder)))

    async def _changed(self, key: str, record: AttemptRecord) -> bool:
        pending = self._pending.pop(key, None)
        if pending is None or not await pending.changed():
            return False
        self._notify(f"{record.name} changed while its job ran: waiting until it is complete")
        return True

    def _is_due(self, since: float) -> bool:
        return time.monotonic() - since >= self._launched.settings.interval * 0.9


def _failed(begun: AttemptRecord, why: str) -> AttemptRecord:
    return msgspec.structs.replace(begun, at=datetime.now(UTC), status=Status.FAILED, failure=why)


def _words(folder: Path, kind: Kind) -> list[str]:
    """What is overridden in the launch file for a folder."""
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    if kind is Kind.ADAPTER:
        return [f"++deployment.adapter='{quoted}'"]
    return [f"++deployment.checkpoint_path='{quoted}'", "++deployment.hf_model_handle=null"]
