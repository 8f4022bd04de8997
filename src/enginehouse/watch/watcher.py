"""Evaluates checkpoints and adapters as they appear in a folder: each once, on one server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import (
    OnProgress,
    begin_run,
    evaluate_on,
    resume_evaluation,
)
from enginehouse.core.errors import (
    AdapterError,
    ConfigurationError,
    ModelError,
    RunNotFoundError,
    ServerError,
    WeightsError,
    WireError,
)
from enginehouse.deployment.base import Deployment, Target
from enginehouse.deployment.preparation import with_weight_swap
from enginehouse.report.curve_page import curve_page
from enginehouse.results.curve import Curve, CurvePoint, Kind
from enginehouse.results.summary import Report
from enginehouse.runtime.context import Context
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout
from enginehouse.store.runs import open_run
from enginehouse.tasks.registry import load_task
from enginehouse.watch.checkpoints import (
    MAY_CHANGE,
    Finished,
    Look,
    Lookout,
    Waiting,
    content_digest,
    state_of,
)
from enginehouse.watch.configuration import WatchConfig
from enginehouse.watch.curves import CurveMaker, scores_of
from enginehouse.watch.host import Host
from enginehouse.watch.journal import AttemptRecord, Status, WatchJournal, held_journal
from enginehouse.weights.checkpoint import digest_of

# The curve, and its new point; None if there is no new one.
OnCurve = Callable[[Curve, CurvePoint | None], None]
_EARLY = 0.9  # of a pause: timers may be early


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One evaluation to do: of a folder's content, or of the base (`folder` None)."""

    folder: Finished | None
    name: str
    digest: str

    @property
    def key(self) -> str:
        return self.folder.name if self.folder else ""

    def record(self, status: Status) -> AttemptRecord:
        return AttemptRecord(
            name=self.name,
            kind=self.folder.kind if self.folder else Kind.BASE,
            step=self.folder.step if self.folder else None,
            digest=self.digest,
            at=datetime.now(UTC),
            status=status,
        )


async def watch(
    config: WatchConfig,
    context: Context,
    *,
    progress: OnProgress = lambda _: None,
    shown: OnCurve = lambda *_: None,
) -> Curve:
    """Evaluate what is in the folder; unless `once`, also what appears there until cancelled.

    Each content is evaluated once, whatever happens to this process; an interrupted run is
    resumed. A folder that cannot be evaluated is a point with a `failure`. Raises UnknownNameError
    and TaskError for a task, ConfigurationError, RunLockedError if another process does the same,
    StoreError, and what starting a server for the base does.
    """
    config = config.with_absolute_paths()
    directory = config.settings.directory
    if config.settings.once and not directory.is_dir():
        raise ConfigurationError(
            f"{directory} is not a folder",
            why="with --once there is nothing to wait for",
            fix="give the folder that holds the checkpoints",
        )
    for task in config.evaluation.tasks:
        await asyncio.to_thread(load_task, task.name)
    with held_journal(config, layout=context.layout) as journal:
        if journal.repair:
            context.notify(str(journal.repair))
        plan = with_weight_swap(config.plan)
        host = Host(plan, context, concurrency=config.evaluation.most_in_flight)
        watcher = _Watcher(
            config, context, journal=journal, host=host, progress=progress, shown=shown
        )
        try:
            return await watcher.carry_on()
        finally:
            await host.close()


class _Watcher:
    """One call of `watch`."""

    def __init__(
        self,
        config: WatchConfig,
        context: Context,
        *,
        journal: WatchJournal,
        host: Host,
        progress: OnProgress,
        shown: OnCurve,
    ) -> None:
        self._config = config
        self._settings = config.settings
        self._context = context
        self._notify = context.notify
        self._journal = journal
        self._host = host
        self._progress = progress
        self._shown = shown
        self._page = config.settings.html or journal.folder / "curve.html"
        self._lookout = Lookout(config.settings.directory, settle=config.settings.interval * _EARLY)
        self._maker = CurveMaker(config, layout=context.layout)
        self._digests: dict[str, tuple[Finished, str]] = {}
        self._unreadable: dict[str, Waiting] = {}
        self._told: set[str] = set()
        self._tried: set[str] = set()

    async def carry_on(self) -> Curve:
        """Evaluate what is finished and look again, until there is nothing left to wait for."""
        self._notify(f"curve: {self._page}")
        curve = await self._publish(None)
        began: float | None = None
        while True:
            look = await asyncio.to_thread(self._lookout.look)
            began = look.at if began is None else began
            self._host.adapters = look.of(Kind.ADAPTER)
            job = await asyncio.to_thread(self._next, look)
            await asyncio.to_thread(self._tell, look)
            if job:
                curve = await self._evaluate(job) or curve
                continue
            if self._settings.once and look.at - began >= self._settings.interval * _EARLY:
                for waiting in (*look.waiting, *self._unreadable.values()):
                    self._notify(f"{waiting.name} is left out: {waiting.why}")
                return curve
            await asyncio.sleep(self._settings.interval)

    def _tell(self, look: Look) -> None:
        """Say once which folders are waited for: missing, half-written or unreadable ones."""
        directory = self._settings.directory
        if directory.is_dir():
            self._told.discard(str(directory))
        elif str(directory) not in self._told:
            self._told.add(str(directory))
            self._notify(f"waiting for {directory}, which does not exist yet")
        self._told -= {folder.name for folder in look.finished} - self._unreadable.keys()
        for waiting in (*look.waiting, *self._unreadable.values()):
            if waiting.why != MAY_CHANGE and waiting.name not in self._told:
                self._told.add(waiting.name)
                self._notify(f"waiting for {waiting.name}: {waiting.why}")

    def _next(self, look: Look) -> _Job | None:
        """The base, then what has the smallest step. Blocking."""
        if (own := self._config.plan.model or self._config.plan.path) is not None:
            digest = _base_digest(str(own), layout=self._context.layout)
            if self._is_new("", digest):
                return _Job(folder=None, name=str(own), digest=digest)
        finished = {folder.name for folder in look.finished}
        for name in self._unreadable.keys() - finished:
            del self._unreadable[name]
        for folder in sorted(look.finished, key=lambda f: (f.step is None, f.step or 0)):
            known, digest = self._digests.get(folder.name, (None, ""))
            if known != folder:
                try:
                    digest = content_digest(folder, layout=self._context.layout)
                except FileNotFoundError:  # it changes: the next look says more
                    continue
                except OSError as error:
                    self._unreadable[folder.name] = Waiting(
                        name=folder.name, path=folder.path, kind=folder.kind, why=str(error)
                    )
                    continue
                self._unreadable.pop(folder.name, None)
                self._digests[folder.name] = (folder, digest)
            if self._is_new(folder.name, digest):
                return _Job(folder=folder, name=folder.name, digest=digest)
        return None

    def _is_new(self, key: str, digest: str) -> bool:
        record = self._journal.of(key)
        if record is None or record.digest != digest or record.status is Status.BEGUN:
            return True
        again = record.status is Status.FAILED and self._settings.retry_failed
        return again and key not in self._tried

    async def _evaluate(self, job: _Job) -> Curve | None:
        """Evaluate, record the result, show it; None if the folder changed while it was loaded."""
        self._tried.add(job.key)
        record = self._twin(job) or await self._attempt(job)
        if record is None:
            self._notify(f"{job.name} changed while it was loaded: waiting for it again")
            return None
        self._journal.add(record)
        return await self._publish(record)

    def _twin(self, job: _Job) -> AttemptRecord | None:
        """The result of the same content under another name."""
        kind = job.folder.kind if job.folder else Kind.BASE
        for other in self._journal.attempts:
            same = (other.kind, other.digest, other.status) == (kind, job.digest, Status.EVALUATED)
            if same and other.key != job.key:
                self._notify(f"{job.name} is the same as {other.name}: not evaluated again")
                record = job.record(Status.EVALUATED)
                return msgspec.structs.replace(record, run=other.run, scores=other.scores)
        return None

    async def _attempt(self, job: _Job) -> AttemptRecord | None:
        """Evaluate it; if the server is lost, once more on a new one."""
        again = False
        while True:
            try:
                deployment = await self._host.ready(job.folder)
            except (ModelError, ServerError) as error:
                its_own = isinstance(error, AdapterError) or not self._host.has_model
                if job.folder is None or not its_own:
                    raise
                return await self._failed(job, error)
            try:
                return await self._evaluate_on(deployment, job)
            except ServerError as error:
                await self._host.close()
                if again and job.folder is None:
                    raise
                if again:
                    return await self._failed(job, error)
                self._notify(f"{job.name}: {error.message}; once more, with a new server")
                again = True

    async def _evaluate_on(self, deployment: Deployment, job: _Job) -> AttemptRecord | None:
        """A new run, or the one that was interrupted. Raises ServerError if the server was lost."""
        async with AsyncExitStack() as stack:
            path = job.folder.path if job.folder else None
            try:
                target = await stack.enter_async_context(deployment.target(path))
            except (ModelError, WeightsError) as error:
                lost = isinstance(error, WeightsError) and not error.restored
                if lost or job.folder is None:
                    raise
                return await self._failed(job, error)
            except WireError as error:
                raise ServerError(error.message, why=error.why, fix=error.fix) from error
            if await self._changed(job):
                return None
            self._notify(f"evaluating {job.name}")
            report = await self._resumed(target, job)
            if report is None:
                planned = await begin_run(self._evaluation(job.folder), self._context)
                begun = msgspec.structs.replace(job.record(Status.BEGUN), run=planned.run.info.id)
                self._journal.add(begun)
                report = await evaluate_on(target, planned, self._context, progress=self._progress)
        record = job.record(Status.EVALUATED)
        return msgspec.structs.replace(record, run=report.run, scores=scores_of(report))

    async def _resumed(self, target: Target, job: _Job) -> Report | None:
        """The report of the run that was interrupted; None if there was none."""
        before = self._journal.of(job.key)
        if before is None or before.digest != job.digest or before.run is None:
            return None
        try:
            run = open_run(self._context.layout, before.run).info.id
        except RunNotFoundError:
            return None
        return await resume_evaluation(
            run, self._context, progress=self._progress, trust=True, target=target
        )

    def _evaluation(self, folder: Finished | None) -> EvaluationConfig:
        """How one of them is evaluated; as a run of its own it can be resumed by itself."""
        if folder is None:
            return self._config.evaluation_config()
        if folder.kind is Kind.ADAPTER:
            return self._config.evaluation_config(adapter=folder.path)
        return self._config.evaluation_config(model=str(folder.path), path=None)

    async def _changed(self, job: _Job) -> bool:
        if job.folder is None:
            return False
        try:
            return await asyncio.to_thread(state_of, job.folder.path) != job.folder.state
        except OSError:
            return True

    async def _failed(self, job: _Job, error: Exception) -> AttemptRecord | None:
        """A failure, unless the folder changed while it was loaded, which explains it."""
        if await self._changed(job):
            return None
        record = job.record(Status.FAILED)
        return msgspec.structs.replace(record, failure=str(error))

    async def _publish(self, record: AttemptRecord | None) -> Curve:
        """Write the curve's files, and show it."""
        curve = await asyncio.to_thread(self._write)
        points = (curve.base, *curve.points) if curve.base else curve.points
        key = (record.kind, record.name) if record else None
        self._shown(curve, next((p for p in points if (p.kind, p.name) == key), None))
        return curve

    def _write(self) -> Curve:
        curve = self._maker.curve(self._journal.attempts)
        write_whole(self._page, curve_page(curve).encode())
        content = msgspec.json.encode(curve)
        write_whole(self._journal.folder / "curve.json", content, private=True)
        return curve


def _base_digest(model: str, *, layout: Layout) -> str:
    """The digest of a base on this disk; any other base is identified by its name."""
    try:
        return digest_of(Path(model), layout=layout)
    except (ModelError, OSError):
        return ""
