"""What every command that works on a run does before and after its work."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from enginehouse.core.errors import (
    ConfigurationError,
    ModelError,
    RunLockedError,
    ServerError,
    TaskError,
    TlsError,
    UnknownNameError,
    UnsupportedError,
)
from enginehouse.processes.tree import ProcessIdentity, identify
from enginehouse.runtime.context import Context
from enginehouse.servers.records import list_servers
from enginehouse.servers.stopping import stop_server
from enginehouse.store.runs import Run, Worker

_NEVER_BEGUN = (ConfigurationError, ModelError, UnsupportedError)  # if nothing was asked
_LASTING = (*_NEVER_BEGUN, TaskError, RunLockedError)  # the same again if the run is resumed


@contextmanager
def working_on(run: Run, context: Context) -> Iterator[None]:
    """Hold the run; if the block fails, note how it ended and say what can be done with it.

    A run of which nothing was asked is removed if its configuration is wrong: it could never be
    resumed.
    """
    try:
        with run.in_progress(worker=_worker(identify(os.getpid()))):
            try:
                yield
            except BaseException as error:
                if (kept := _what_is_kept(run, error)) is not None:
                    context.notify(kept)
                raise
    except _NEVER_BEGUN:
        if not run.journal_path.exists():  # nothing was asked, and resuming could not succeed
            shutil.rmtree(run.folder, ignore_errors=True)
            context.notify(f"run {run.info.id} is removed: nothing was asked")
        raise


async def stop_abandoned_servers(run: Run, context: Context) -> None:
    """Stop the servers of this run's killed process, before new ones need their memory."""
    for status in list_servers(context.layout):
        if status.abandoned and run.info.worker == _worker(status.record.starter):
            context.notify(f"stopping {status.record.name}, which the killed run left behind")
            with contextlib.suppress(UnknownNameError):  # its reaper was faster
                await stop_server(status.record.name, layout=context.layout)


def _what_is_kept(run: Run, error: BaseException) -> str | None:
    """What can be done with a run that `error` ended; None if nothing can.

    A run is resumed with the options that it began with: an error in those, in its task or in its
    model would occur again.
    """
    begun = run.journal_path.exists()
    if isinstance(error, _LASTING):
        what = "samples" if run.info.kind == "evaluation" else "matches"
        return f"its {what} are kept: enginehouse show {run.reference}" if begun else None
    if isinstance(error, (ServerError, TlsError)) and not begun:
        return None  # no server was reached, so another option or address may be needed
    return f"the run is kept; continue with: enginehouse resume {run.reference}"


def _worker(process: ProcessIdentity | None) -> Worker | None:
    return Worker(**msgspec.structs.asdict(process)) if process else None
