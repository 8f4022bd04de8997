"""Stop a server by name, even if another process started it, and prove that it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from functools import partial

from enginehouse.core.errors import StopError, UnknownNameError
from enginehouse.processes.tree import ProcessTree
from enginehouse.servers.gpu_memory import require_memory_back
from enginehouse.servers.ports import is_free, release_ports, who_has
from enginehouse.servers.records import find_server, mark_stopped, remove_record
from enginehouse.servers.timings import TIMINGS, Timings
from enginehouse.store.layout import Layout


async def stop_server(name: str, *, layout: Layout, timings: Timings = TIMINGS) -> None:
    """Stop a server by name and forget it; the record of a dead one is removed.

    Processes are identified by pid and start, so a recycled pid is never touched. Raises
    UnknownNameError, or StopError naming what is still there.
    """
    record = find_server(name, layout=layout)
    mark_stopped(layout, name)
    while True:
        process = record.process
        tree = ProcessTree(process, orphan_grace=timings.orphan_grace)
        await tree.stop(grace=timings.stop_grace, reap=partial(_reap, process.pid))
        await require_memory_back(tree.pids, baseline={}, timings=timings)
        with contextlib.suppress(UnknownNameError):
            record = find_server(name, layout=layout)
        if record.process == process:  # otherwise it had just been restarted
            break
    await require_free_port(record.lease.port, host=record.host, timings=timings)
    release_ports(layout, record.lease)
    remove_record(layout, name)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def require_free_port(port: int, *, host: str, timings: Timings = TIMINGS) -> None:
    """Wait a moment for the port. Raises StopError, naming the process that has it."""
    deadline = time.monotonic() + timings.port
    while not is_free(port, host=host):
        if time.monotonic() > deadline:
            raise StopError(
                f"every process of the server is gone, but port {port} is still taken",
                why=f"by {who_has(port) or 'a process that we are not allowed to see'}",
                fix="end that process; it may have taken the port in between",
            )
        await asyncio.sleep(0.05)
