"""Launching jobs, and everything that is done with them afterwards."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import yaml
from filelock import FileLock, Timeout

from enginehouse.core.errors import ConfigurationError, EnginehouseError, JobError, StoreError
from enginehouse.deployment.configuration import parse
from enginehouse.jobs.base import Handle, JobState, JobStatus
from enginehouse.jobs.executors.base import ExecutionSettings, Executor, SupportsRecovery
from enginehouse.jobs.executors.registry import EXECUTORS
from enginehouse.jobs.plan import LaunchPlan
from enginehouse.jobs.records import JobRecord, JobRecords
from enginehouse.jobs.task_names import require_runnable
from enginehouse.runtime.context import Context

_LONGEST_DIAGNOSIS = 40  # lines
_LONGEST_SUBMISSION = timedelta(minutes=10)


def open_executor(settings: ExecutionSettings, context: Context) -> Executor:
    """The executor of these settings, not yet entered."""
    executor: Executor = EXECUTORS.load(settings.type)(settings, context)
    return executor


async def launch(plan: LaunchPlan, context: Context) -> JobRecord:
    """Submit the plan's job, and remember it. Returns when its executor has accepted it.

    Raises ConfigurationError for tasks that no harness here has and for secrets that are not set,
    and JobError; then, and if it is cancelled, no job and no record is left.
    """
    require_runnable(plan.tasks)
    secrets = plan.variables.secret_values(os.environ)
    records = JobRecords(context.layout)
    record = JobRecord(
        id=plan.job.id,
        name=plan.job.name,
        created=plan.created,
        executor=plan.config.execution.type,
        settings=plan.config.execution.model_dump(mode="json", exclude_defaults=True),
        job=plan.job,
        secret_sources={
            name: variable.host or name
            for name, variable in plan.variables.by_name.items()
            if variable.secret
        },
        model=plan.evaluation.plan.model
        or str(plan.evaluation.plan.path or plan.evaluation.plan.url),
        tasks=tuple(task.name for task in plan.evaluation.settings.tasks),
        configuration=yaml.safe_dump(dict(plan.config.values), sort_keys=False, allow_unicode=True),
    )
    await asyncio.to_thread(records.add, record)
    try:
        return await _submit(record, plan.config.execution, secrets, context)
    except BaseException:
        with suppress(EnginehouseError):
            records.remove(record.id)
        raise


async def refresh(records: Sequence[JobRecord], context: Context) -> list[JobRecord]:
    """The records with the state that their executors tell now, which is also stored.

    Each place is asked once for all of its jobs. A job of which its executor knows nothing any
    more keeps the end that was last seen. Where a place cannot be reached, or a record is not one
    of this version's, `context` is notified and the state is UNKNOWN.
    """
    by_place: dict[tuple[str, str], list[JobRecord]] = defaultdict(list)
    for record in records:
        try:
            place = _settings(record).place
        except EnginehouseError:
            place = record.id  # its own, where the error is told
        by_place[record.executor, place].append(record)
    groups = await asyncio.gather(*(_refresh(group, context) for group in by_place.values()))
    refreshed = {record.id: record for group in groups for record in group}
    return [refreshed[record.id] for record in records]


async def job_logs(record: JobRecord, context: Context, *, follow: bool) -> AsyncIterator[str]:
    """A job's output, in pieces; with `follow`, until it has ended. Raises JobError."""
    async with open_executor(_settings(record), context) as executor:
        async for piece in executor.logs(_handle(record), follow=follow):
            yield piece


async def kill(record: JobRecord, context: Context) -> JobRecord:
    """End a job; returns when nothing of it is left. Idempotent."""
    if record.handle is None or record.resuming:
        (record,) = await refresh([record], context)
    async with open_executor(_settings(record), context) as executor:
        await executor.cancel(_handle(record))
    (ended,) = await refresh([record], context)
    return ended


async def resume(record: JobRecord, context: Context) -> JobRecord:
    """Submit a job again, which continues where it was. Raises JobError while it has not ended.

    Of several launchers that resume a job at the same time, one submits it.
    """
    lock = FileLock(context.layout.jobs.with_name(f"{record.id}.lock"), mode=0o600)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise JobError(
            f"the job {record.id} is being resumed by another command",
            fix=f"check its status: enginehouse launch status {record.short_id}",
            kind="running",
        ) from error
    try:
        return await _resume(record, context)
    finally:
        lock.release()


async def _resume(record: JobRecord, context: Context) -> JobRecord:
    (record,) = await refresh([record], context)
    if not record.status.state.ended:
        raise JobError(
            f"the job {record.id} is {record.status.state}",
            fix=f"wait until it ends, or stop it: enginehouse launch kill {record.short_id}",
            kind="running",
        )
    sources = record.secret_sources
    if missing := sorted({source for source in sources.values() if source not in os.environ}):
        raise ConfigurationError(
            f"not set in this environment: {', '.join(missing)}",
            why="the job was launched with them, but values of secrets are not stored",
            fix="export them again, then repeat the command",
        )
    secrets = {name: os.environ[source] for name, source in sources.items()}
    return await _submit(record, _settings(record), secrets, context)


async def fetch(record: JobRecord, context: Context, *, into: Path) -> Path:
    """A local folder with the job's files; its run is in `run` there. Raises JobError.

    It is the job's own folder where that can be read from here, and else below `into`.
    """
    async with open_executor(_settings(record), context) as executor:
        return await executor.fetch(_handle(record), into)


async def _submit(
    record: JobRecord, settings: ExecutionSettings, secrets: Mapping[str, str], context: Context
) -> JobRecord:
    records = JobRecords(context.layout)
    async with open_executor(settings, context) as executor:
        if record.handle is not None:
            await asyncio.to_thread(records.update, record.id, resuming=True)
        work = asyncio.ensure_future(executor.submit(record.job, secrets=secrets))
        try:
            handle = await asyncio.shield(work)
            return await asyncio.to_thread(
                records.update,
                record.id,
                handle=handle,
                resuming=False,
                status=JobStatus(state=JobState.PENDING),
                diagnosis=None,
                submissions=record.submissions + 1,
            )
        except BaseException:
            with suppress(EnginehouseError):  # if it was not submitted, there is nothing to end
                await executor.cancel(await work)
            raise


async def _refresh(records: Sequence[JobRecord], context: Context) -> list[JobRecord]:
    """The records of one place."""
    try:
        async with open_executor(_settings(records[0]), context) as executor:
            records = [await _recover(record, executor, context) for record in records]
            submitted = [record for record in records if record.handle is not None]
            handles = [_handle(record) for record in submitted]
            statuses = await executor.statuses(handles) if handles else ()
            changed = {
                record.id: msgspec.structs.replace(
                    await _update_status(record, status, executor, context), handle=record.handle
                )
                for record, status in zip(submitted, statuses, strict=True)
            }
            return [changed.get(record.id, record) for record in records]
    except StoreError:
        raise
    except EnginehouseError as error:
        context.notify(f"{records[0].executor}: {error}")
        unknown = JobStatus(state=JobState.UNKNOWN, reason="its executor did not answer")
        return [msgspec.structs.replace(record, status=unknown) for record in records]


async def _recover(record: JobRecord, executor: Executor, context: Context) -> JobRecord:
    """The record, with the handle that a launcher which was killed did not get to note."""
    if record.handle is not None and not record.resuming:
        return record
    handle = await executor.find(record.job) if isinstance(executor, SupportsRecovery) else None
    if record.handle is not None:
        return record if handle is None else msgspec.structs.replace(record, handle=handle)
    changes: dict[str, Any] = {"handle": handle, "submissions": record.submissions + 1}
    if handle is None:
        if datetime.now(UTC) - record.created < _LONGEST_SUBMISSION:
            return record
        reason = "the command that launched it ended before it recorded the submission"
        changes = {"status": JobStatus(state=JobState.UNKNOWN, reason=reason)}
    return await asyncio.to_thread(JobRecords(context.layout).update, record.id, **changes)


async def _update_status(
    record: JobRecord, status: JobStatus, executor: Executor, context: Context
) -> JobRecord:
    """The record with a new status, stored if it differs."""
    if status == record.status:
        return record
    if status.state is JobState.UNKNOWN and record.status.state.ended:
        return record
    diagnosis = None
    if status.state in (JobState.FAILED, JobState.INTERRUPTED):
        with suppress(EnginehouseError):
            diagnosis = await _diagnosis(executor, _handle(record))
    return await asyncio.to_thread(
        JobRecords(context.layout).update, record.id, status=status, diagnosis=diagnosis
    )


async def _diagnosis(executor: Executor, handle: Handle) -> str | None:
    """The last error that the job's command printed: see `cli/console.py`."""
    said = "".join([piece async for piece in executor.logs(handle, follow=False)])
    lines = said.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return None
    block = lines[starts[-1] : starts[-1] + _LONGEST_DIAGNOSIS]
    kept = [block[0].removeprefix("error: ")]
    for line in block[1:]:
        if not line.startswith("  "):
            break
        kept.append(line)
    return "\n".join(kept)


def _settings(record: JobRecord) -> ExecutionSettings:
    kind: type[ExecutionSettings] = EXECUTORS.load(record.executor).settings_class
    return parse(kind, record.settings, origin=f"the record of the job {record.id}")


def _handle(record: JobRecord) -> Handle:
    if record.handle is None and not record.status.state.ended:
        raise JobError(
            f"the job {record.id} has not been submitted yet",
            why="the command that submits it is still running, or was killed",
            fix="stop that command if it is still running, or repeat this one in a few minutes",
            kind="not_submitted",
        )
    if record.handle is None:
        raise JobError(
            f"the job {record.id} was never submitted",
            why="the command that launched it ended first",
            fix=f"submit it: enginehouse launch resume {record.short_id}",
            kind="not_submitted",
        )
    return record.handle
