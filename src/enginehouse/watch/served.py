"""Evaluates checkpoints one after another, on one server that keeps running."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

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
    ModelError,
    RunNotFoundError,
    ServerError,
    WeightsError,
    WireError,
)
from enginehouse.deployment.base import Deployment, Target
from enginehouse.results.curve import Kind
from enginehouse.results.summary import Report
from enginehouse.runtime.context import Context
from enginehouse.store.runs import open_run
from enginehouse.watch.checkpoints import Finished, Look
from enginehouse.watch.configuration import WatchConfig
from enginehouse.watch.curves import scores_of
from enginehouse.watch.evaluations import Pending
from enginehouse.watch.host import Host
from enginehouse.watch.journal import AttemptRecord, Status, WatchJournal


class ServedEvaluations:
    """The evaluations of one watch on its own server; each has ended when `evaluate` returns."""

    following: frozenset[str] = frozenset()
    has_room = True

    def __init__(
        self,
        config: WatchConfig,
        context: Context,
        *,
        journal: WatchJournal,
        host: Host,
        progress: OnProgress,
    ) -> None:
        self._config = config
        self._context = context
        self._notify = context.notify
        self._journal = journal
        self._host = host
        self._progress = progress

    def expect(self, look: Look) -> None:
        """The server is started for the largest adapter."""
        self._host.adapters = look.of(Kind.ADAPTER)

    async def ended(self) -> Sequence[AttemptRecord]:
        """Nothing: see above."""
        return ()

    async def close(self) -> None:
        """Stop the server."""
        await self._host.close()

    async def evaluate(self, pending: Pending) -> AttemptRecord | None:
        """Evaluate it; if the server is lost, once more on a new one."""
        again = False
        while True:
            try:
                deployment = await self._host.ready(pending.folder)
            except (ModelError, ServerError) as error:
                its_own = isinstance(error, AdapterError) or not self._host.has_model
                if pending.folder is None or not its_own:
                    raise
                return await self._failed(pending, error)
            try:
                return await self._evaluate_on(deployment, pending)
            except ServerError as error:
                await self._host.close()
                if again and pending.folder is None:
                    raise
                if again:
                    return await self._failed(pending, error)
                self._notify(f"{pending.name}: {error.message}; trying again with a new server")
                again = True

    async def _evaluate_on(self, deployment: Deployment, pending: Pending) -> AttemptRecord | None:
        """A new run, or the one that was interrupted. Raises ServerError if the server was lost."""
        async with AsyncExitStack() as stack:
            path = pending.folder.path if pending.folder else None
            try:
                target = await stack.enter_async_context(deployment.target(path))
            except (ModelError, WeightsError) as error:
                lost = isinstance(error, WeightsError) and not error.restored
                if lost or pending.folder is None:
                    raise
                return await self._failed(pending, error)
            except WireError as error:
                raise ServerError(error.message, why=error.why, fix=error.fix) from error
            if await pending.changed():
                self._tell_change(pending)
                return None
            self._notify(f"evaluating {pending.name}")
            report = await self._resumed(target, pending)
            if report is None:
                planned = await begin_run(self._evaluation(pending.folder), self._context)
                begun = msgspec.structs.replace(
                    pending.record(Status.BEGUN), run=planned.run.info.id
                )
                self._journal.add(begun)
                report = await evaluate_on(target, planned, self._context, progress=self._progress)
        record = pending.record(Status.EVALUATED)
        return msgspec.structs.replace(record, run=report.run, scores=scores_of(report))

    async def _resumed(self, target: Target, pending: Pending) -> Report | None:
        """The report of the run that was interrupted; None if there was none."""
        before = self._journal.of(pending.key)
        if before is None or before.digest != pending.digest or before.run is None:
            return None
        try:
            run = open_run(self._context.layout, before.run).info.id
        except RunNotFoundError:
            return None
        return await resume_evaluation(
            run, self._context, progress=self._progress, trust=True, target=target
        )

    async def _failed(self, pending: Pending, error: Exception) -> AttemptRecord | None:
        record = await pending.failed(error)
        if record is None:
            self._tell_change(pending)
        return record

    def _tell_change(self, pending: Pending) -> None:
        self._notify(f"{pending.name} changed while it was loaded: waiting until it is complete")

    def _evaluation(self, folder: Finished | None) -> EvaluationConfig:
        """How one of them is evaluated; as a run of its own it can be resumed by itself."""
        if folder is None:
            return self._config.evaluation_config()
        if folder.kind is Kind.ADAPTER:
            return self._config.evaluation_config(adapter=folder.path)
        return self._config.evaluation_config(model=str(folder.path), path=None)
