"""GPU memory before a launch and after a stop: a driver frees it after the process is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping

from enginehouse.core.errors import StopError
from enginehouse.processes.gpus import memory_by_pid
from enginehouse.servers.timings import TIMINGS, Timings


async def read_baseline() -> Mapping[int, int]:
    """Bytes that each process holds now, on all GPUs; empty without a GPU."""
    return await asyncio.to_thread(memory_by_pid)


async def require_memory_back(
    pids: Collection[int], *, baseline: Mapping[int, int], timings: Timings = TIMINGS
) -> None:
    """Wait until none of `pids` holds GPU memory that it did not hold in `baseline`.

    Raises StopError, naming pids and sizes, after `timings.gpu_memory`. Processes that the driver
    does not show here (those of another container) are not waited for.
    """
    deadline = time.monotonic() + timings.gpu_memory
    while True:
        now = await read_baseline()
        held = {pid: now[pid] for pid in pids if now.get(pid, 0) > baseline.get(pid, 0)}
        if not held:
            return
        if time.monotonic() > deadline:
            sizes = ", ".join(f"{size >> 20} MiB by pid {pid}" for pid, size in held.items())
            raise StopError(
                f"every process of the server is gone, but GPU memory is still taken: {sizes}",
                why="the driver has not freed it, most often because a call into it is stuck",
                fix="look at `nvidia-smi` and `dmesg`; a GPU that stays like this needs a reset",
            )
        await asyncio.sleep(timings.gpu_memory_poll)
