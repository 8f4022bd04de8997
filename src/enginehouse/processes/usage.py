"""What a process tree uses of the machine: processor and memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable

import msgspec
import psutil


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Of all processes together; `cpu` in cores since the last reading, None at the first.

    `rss_bytes` counts memory that processes share once for each of them.
    """

    processes: int
    cpu: float | None
    rss_bytes: int


class UsageMeter:
    """Reads one process tree again and again; its processes may come and go."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moment: float | None = None
        self._seconds: dict[psutil.Process, float] = {}

    def read(self, pids: Iterable[int]) -> Usage:
        """The usage of those of `pids` that are alive.

        What a process did between the last reading and its end is not seen.
        """
        rss = 0
        seconds: dict[psutil.Process, float] = {}
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    rss += process.memory_info().rss
                seconds[process] = times.user + times.system
        now, before = self._clock(), self._moment
        grown = sum(spent - self._seconds.get(process, 0.0) for process, spent in seconds.items())
        self._moment, self._seconds = now, seconds
        cpu = grown / (now - before) if before is not None and now > before else None
        return Usage(processes=len(seconds), cpu=cpu, rss_bytes=rss)
