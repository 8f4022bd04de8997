"""Evaluates checkpoints and adapters as they appear in a folder: each once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginehouse.commands.evaluate import OnProgress
from enginehouse.core.errors import ConfigurationError, ModelError
from enginehouse.deployment.preparation import with_weight_swap
from enginehouse.report.curve_page import curve_page
from enginehouse.results.curve import Curve, CurvePoint, Kind
from enginehouse.runtime.context import Context
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout
from enginehouse.tasks.registry import load_task
from enginehouse.watch.checkpoints import (
    MAY_CHANGE,
    Finished,
    Look,
    Lookout,
    Waiting,
    content_digest,
)
from enginehouse.watch.configuration import WatchConfig, WatchSettings
from enginehouse.watch.curves import CurveMaker
from enginehouse.watch.evaluations import Evaluations, Pending
from enginehouse.watch.host import Host
from enginehouse.watch.journal import AttemptRecord, Status, WatchJournal, held_journal
from enginehouse.watch.served import ServedEvaluations
from enginehouse.watch.submitted import LaunchedWatch, SubmittedEvaluations
from enginehouse.weights.checkpoint import digest_of

# The curve, and its new point; None if there is no new one.
OnCurve = Callable[[Curve, CurvePoint | None], None]
_EARLY = 0.9  # of a pause: timers may be early


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
    _require_folder(config.settings)
    for task in config.evaluation.tasks:
        await asyncio.to_thread(load_task, task.name)
    base, directory = config.plan.model or config.plan.path, config.settings.directory
    with held_journal(config.asked(), directory=directory, layout=context.layout) as journal:
        host = Host(
            with_weight_swap(config.plan), context, concurrency=config.evaluation.most_in_flight
        )
        evaluations = ServedEvaluations(
            config, context, journal=journal, host=host, progress=progress
        )
        watcher = _Watcher(
            config.settings,
            context,
            base=None if base is None else str(base),
            seed=config.evaluation.seed,
            journal=journal,
            evaluations=evaluations,
            shown=shown,
        )
        return await watcher.carry_on()


async def watch_with_jobs(
    launched: LaunchedWatch, context: Context, *, shown: OnCurve = lambda *_: None
) -> Curve:
    """Submit a job for each checkpoint in the folder, and follow it; otherwise like `watch`.

    Cancelling it leaves the jobs alone, and another call finds them again. A job that cannot be
    submitted now is tried again later. Raises ConfigurationError for the launch file,
    RunLockedError and StoreError.
    """
    _require_folder(launched.settings)
    directory = launched.settings.directory
    with held_journal(launched.asked(), directory=directory, layout=context.layout) as journal:
        watcher = _Watcher(
            launched.settings,
            context,
            base=launched.base,
            seed=launched.seed,
            journal=journal,
            evaluations=SubmittedEvaluations(launched, context, journal=journal),
            shown=shown,
        )
        return await watcher.carry_on()


def _require_folder(settings: WatchSettings) -> None:
    if settings.once and not settings.directory.is_dir():
        raise ConfigurationError(
            f"{settings.directory} is not a folder",
            why="--once does not wait for it to appear",
            fix="give the folder that holds the checkpoints",
        )


class _Watcher:
    """One call of `watch`."""

    def __init__(
        self,
        settings: WatchSettings,
        context: Context,
        *,
        base: str | None,
        seed: int,
        journal: WatchJournal,
        evaluations: Evaluations,
        shown: OnCurve,
    ) -> None:
        self._settings = settings
        self._context = context
        self._notify = context.notify
        self._base = base
        self._journal = journal
        self._evaluations = evaluations
        self._shown = shown
        self._page = settings.html or journal.folder / "curve.html"
        self._lookout = Lookout(
            settings.directory,
            settle=settings.interval * _EARLY,
            include=settings.include,
            ready_markers=settings.ready_markers,
        )
        self._maker = CurveMaker(settings.directory, model=base, seed=seed, layout=context.layout)
        self._digests: dict[str, tuple[Finished, str]] = {}
        self._unreadable: dict[str, Waiting] = {}
        self._told: set[str] = set()
        self._tried: set[str] = set()

    async def carry_on(self) -> Curve:
        """Evaluate what is finished and look again, until there is nothing left to wait for."""
        if self._journal.repair:
            self._notify(str(self._journal.repair))
        self._notify(f"curve: {self._page}")
        try:
            return await self._repeat()
        finally:
            await self._evaluations.close()

    async def _repeat(self) -> Curve:
        curve = await self._publish(None)
        began: float | None = None
        while True:
            look = await asyncio.to_thread(self._lookout.look)
            began = look.at if began is None else began
            self._evaluations.expect(look)
            for record in await self._evaluations.ended():
                curve = await self._keep(record)
            pending = None
            if self._evaluations.has_room:
                pending = await asyncio.to_thread(self._next, look)
            await asyncio.to_thread(self._tell, look)
            if pending and (attempt := await self._attempt(pending)):
                curve = curve if attempt.status is Status.BEGUN else await self._keep(attempt)
                continue
            waits = pending or self._evaluations.following or not self._evaluations.has_room
            settled = look.at - began >= self._settings.interval * _EARLY
            if self._settings.once and settled and not waits:
                for waiting in (*look.waiting, *self._unreadable.values()):
                    self._notify(f"skipping {waiting.name}: {waiting.why}")
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

    def _next(self, look: Look) -> Pending | None:
        """The base, then by step. Blocking."""
        if self._base is not None:
            digest = _base_digest(self._base, layout=self._context.layout)
            if self._is_new("", digest):
                return Pending(folder=None, name=self._base, digest=digest)
        finished = {folder.name for folder in look.finished}
        for name in self._unreadable.keys() - finished:
            del self._unreadable[name]
        for folder in self._ordered(look):
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
                return Pending(folder=folder, name=folder.name, digest=digest)
        return None

    def _ordered(self, look: Look) -> list[Finished]:
        """The finished folders by step; those without one are the last."""
        sign = -1 if self._settings.order == "last" else 1
        return sorted(look.finished, key=lambda f: (f.step is None, sign * (f.step or 0)))

    def _is_new(self, key: str, digest: str) -> bool:
        if key in self._evaluations.following:
            return False
        record = self._journal.of(key)
        if record is None or record.digest != digest or record.status is Status.BEGUN:
            return True
        again = record.status is Status.FAILED and self._settings.retry_failed
        return again and key not in self._tried

    async def _attempt(self, pending: Pending) -> AttemptRecord | None:
        """Evaluate it, or begin to; None if that is not possible now."""
        self._tried.add(pending.key)
        return self._twin(pending) or await self._evaluations.evaluate(pending)

    async def _keep(self, record: AttemptRecord) -> Curve:
        """Record an attempt that has ended, and show it."""
        self._journal.add(record)
        return await self._publish(record)

    def _twin(self, pending: Pending) -> AttemptRecord | None:
        """The result of the same content under another name."""
        kind = pending.folder.kind if pending.folder else Kind.BASE
        for other in self._journal.attempts:
            same = (other.kind, other.digest) == (kind, pending.digest)
            if same and other.status is Status.EVALUATED and other.key != pending.key:
                self._notify(f"{pending.name} is the same as {other.name}: not evaluated again")
                record = pending.record(Status.EVALUATED)
                return msgspec.structs.replace(record, run=other.run, scores=other.scores)
        return None

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
