"""Stop a server by name, whoever started it, and prove it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

from enginehouse.core.errors import StopError, UnknownNameError
from enginehouse.processes.tree import ProcessTree
from enginehouse.servers.gpu_memory import demand_memory_back
from enginehouse.servers.ports import is_free, release_ports, who_has
from enginehouse.servers.records import (
    ServerRecord,
    find_server,
    mark_stopped,
    remove_record,
)
from enginehouse.store.layout import Layout

STOP_GRACE = 15.0
_PORT_WAIT = 5.0


async def stop_server(name: str, *, layout: Layout, grace: float = STOP_GRACE) -> None:
    """Stop a server by name, whoever started it, and forget it; one that is dead is forgotten.

    Knows its processes by pid and start, so a recycled pid is never touched. Raises
    UnknownNameError, or StopError naming what is still there.
    """
    record = find_server(name, layout=layout)
    mark_stopped(layout, name)
    while True:
        before = record
        await _stop_tree(before, grace=grace)
        with contextlib.suppress(UnknownNameError):
            record = find_server(name, layout=layout)
        if record.process == before.process:  # else it had just been started again
            break
    await demand_free_port(record.lease.port, host=record.host)
    release_ports(layout, record.lease)
    remove_record(layout, name)


async def _stop_tree(record: ServerRecord, *, grace: float) -> None:
    tree = ProcessTree(record.process)
    await tree.stop(grace=grace, reap=lambda: _reap(record.process.pid))
    await demand_memory_back(tree.pids, baseline={})


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def demand_free_port(port: int, *, host: str) -> None:
    """Wait a moment for the port. Raises StopError, naming who has it."""
    deadline = time.monotonic() + _PORT_WAIT
    while not is_free(port, host=host):
        if time.monotonic() > deadline:
            raise StopError(
                f"every process of the server is gone, but port {port} is still taken",
                why=f"by {who_has(port) or 'a process that we may not see'}",
                fix="end that process; it may have taken the port in between",
            )
        await asyncio.sleep(0.05)
