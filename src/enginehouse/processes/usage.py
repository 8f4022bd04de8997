"""The processor time and memory that a process tree uses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable

import msgspec
import psutil


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """All processes together; `cpu` in cores since the last reading, None at the first.

    `rss_bytes` counts shared memory once for each process.
    """

    processes: int
    cpu: float | None
    rss_bytes: int


class UsageMeter:
    """Reads one process tree repeatedly; its processes may come and go."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moment: float | None = None
        self._seconds: dict[psutil.Process, float] = {}

    def read(self, pids: Iterable[int]) -> Usage:
        """The usage of those of `pids` that are alive.

        What a process did between the last reading and its end is missed.
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
