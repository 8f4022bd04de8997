"""The launcher's `info --copy-logs` and `--copy-artifacts`."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from enginehouse.core.system_errors import worded
from enginehouse.jobs.launch import fetch, job_logs
from enginehouse.jobs.plan import RUN
from enginehouse.jobs.records import JobRecord, JobRecords
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout


def copy_jobs(ids: Sequence[str], *, logs: Path | None, artifacts: Path | None) -> list[Path]:
    """Copy the output of jobs below `logs`, and their runs below `artifacts`; returns the copies.

    Each has a folder of the job's id there, `logs` and `artifacts` in it. Blocking. Raises
    JobError, and StoreError for a folder that cannot be written.
    """
    context = Context(layout=Layout.from_environment())
    records = [JobRecords(context.layout).find(job) for job in ids]
    try:
        return asyncio.run(_copied(records, context, logs=logs, artifacts=artifacts))
    except OSError as error:
        raise worded(error) from error


async def _copied(
    records: Sequence[JobRecord], context: Context, *, logs: Path | None, artifacts: Path | None
) -> list[Path]:
    copies = []
    for record in records:
        if logs is not None:
            log = logs / record.id / "logs" / "log.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            pieces = [piece async for piece in job_logs(record, context, follow=False)]
            log.write_text("".join(pieces), encoding="utf-8")
            copies.append(log)
        if artifacts is not None:
            target = artifacts / record.id / "artifacts"
            with tempfile.TemporaryDirectory() as into:
                folder = await fetch(record, context, into=Path(into))
                shutil.copytree(folder / RUN, target, dirs_exist_ok=True)
            copies.append(target)
    return copies
