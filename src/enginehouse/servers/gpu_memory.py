"""GPU memory before a launch and after a stop: a driver gives it back after the process is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping

from enginehouse.core.errors import StopError
from enginehouse.processes.gpus import memory_by_pid

_WAIT = 30.0  # seconds; freeing 80 GB takes some
_POLL = 0.2


async def read_baseline() -> Mapping[int, int]:
    """Bytes that each process holds now, on all GPUs; empty where there is no GPU."""
    return await asyncio.to_thread(memory_by_pid)


async def demand_memory_back(pids: Collection[int], *, baseline: Mapping[int, int]) -> None:
    """Wait until none of `pids` holds GPU memory that it did not hold in `baseline`.

    Raises StopError after half a minute, naming pids and sizes. Processes that the driver does not
    show here (those of another container) are not waited for.
    """
    deadline = time.monotonic() + _WAIT
    while held := _held(await read_baseline(), pids, baseline):
        if time.monotonic() > deadline:
            sizes = ", ".join(f"{size >> 20} MiB by pid {pid}" for pid, size in held.items())
            raise StopError(
                f"every process of the server is gone, but GPU memory is still taken: {sizes}",
                why="the driver has not given it back, most often because a call of it is stuck",
                fix="look at `nvidia-smi` and `dmesg`; a GPU that stays so needs a reset",
            )
        await asyncio.sleep(_POLL)


def _held(
    now: Mapping[int, int], pids: Collection[int], baseline: Mapping[int, int]
) -> dict[int, int]:
    return {pid: now[pid] for pid in pids if now.get(pid, 0) > baseline.get(pid, 0)}
