"""A process and everything that descends from it: found, signalled, proved gone.

Descendants are found in three ways, because each misses some: by parent (misses a child whose
parent died), by session or process group (misses one that started its own), and by memory (looking
repeatedly while they live catches those two before they hide). Processes are identified by pid and
start, so a recycled pid is never signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import psutil

from enginehouse.core.errors import StopError

ORPHAN_GRACE = 2.0
KILL_WAIT = 10.0
POLL = 0.05
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A process for good: pids are reused, identities are not.

    `started` is in seconds after the machine's start (so setting the clock changes nothing), `boot`
    identifies that start if the system reports it.
    """

    pid: int
    started: float
    boot: str = ""


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of the live process `pid`; None if there is none. A zombie is not alive."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        started = round(process.create_time() - psutil.boot_time(), 2)
    except psutil.Error:
        return None
    boot = ""
    with contextlib.suppress(OSError):
        boot = BOOT_ID.read_text().strip()
    return ProcessIdentity(pid=pid, started=started, boot=boot)


def this_process() -> ProcessIdentity:
    """The identity of this process."""
    identity = identify(os.getpid())
    assert identity is not None
    return identity


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process runs; False for a zombie, and for another process of that pid."""
    return identify(identity.pid) == identity


class ProcessTree:
    """A process and its descendants; it need not be our child, nor the leader of a session.

    `orphan_grace`: seconds after SIGTERM for those that have outlived the leader. `kill_wait`:
    seconds until a process that survives SIGKILL is an error.
    """

    def __init__(
        self,
        leader: ProcessIdentity,
        *,
        orphan_grace: float = ORPHAN_GRACE,
        kill_wait: float = KILL_WAIT,
    ) -> None:
        self.leader = leader
        self._orphan_grace = orphan_grace
        self._kill_wait = kill_wait
        self._seen: set[psutil.Process] = set()
        self._pids: set[int] = {leader.pid}
        self._read: dict[psutil.Process, int] = {}

    @property
    def pids(self) -> frozenset[int]:
        """Every process that was ever seen to belong to it, alive or not."""
        return frozenset(self._pids)

    def bytes_read(self) -> int:
        """What the processes seen so far have read from files and pipes, or mapped from a disk."""
        for process in self._seen:
            with contextlib.suppress(psutil.Error, OSError, AttributeError):
                counters = process.io_counters()
                self._read[process] = max(counters.read_chars, counters.read_bytes)
        return sum(self._read.values())

    def look(self) -> tuple[psutil.Process, ...]:
        """Every process of the tree that is alive now, remembered from now on.

        Reads the process table once: about 20 µs for each process of the machine.
        """
        current = identify(self.leader.pid)
        recycled = current is not None and current != self.leader
        children: dict[int, list[psutil.Process]] = defaultdict(list)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                children[process.ppid()].append(process)
                # If the pid was reused, a session of that number is somebody else's.
                if not recycled and self.leader.pid in _groups(process.pid):
                    self._seen.add(process)
        self._seen = {process for process in self._seen if _is_running(process)}
        unvisited = list(self._seen)
        while unvisited:
            for child in children[unvisited.pop().pid]:
                if child not in self._seen and _is_running(child):
                    self._seen.add(child)
                    unvisited.append(child)
        self._pids.update(process.pid for process in self._seen)
        return tuple(sorted(self._seen, key=lambda process: process.pid))

    async def stop(self, *, grace: float, reap: Callable[[], object] = lambda: None) -> None:
        """SIGTERM the leader, wait `grace` seconds, SIGKILL the rest; return when all are gone.

        Once the leader is gone, the others get SIGTERM and a moment to tidy up (shared memory).
        `reap` collects the leader's exit status if it is our child. Idempotent. If cancelled, it
        kills at once (blocking, usually for milliseconds). Raises StopError, naming pids.
        """
        try:
            _send(signal.SIGTERM, (p for p in self.look() if p.pid == self.leader.pid))
            deadline = time.monotonic() + grace
            orphaned = False
            while (left := self.look()) and time.monotonic() <= deadline:
                if not orphaned and all(process.pid != self.leader.pid for process in left):
                    orphaned = True
                    deadline = min(deadline, time.monotonic() + self._orphan_grace)
                    _send(signal.SIGTERM, left)
                await asyncio.sleep(POLL)
                reap()
            deadline = time.monotonic() + self._kill_wait
            while left := self._kill(reap):
                if time.monotonic() > deadline:
                    raise _survivors(left)
                await asyncio.sleep(POLL)
        except asyncio.CancelledError:
            # A cancelled task must not wait, and must leave nothing running.
            deadline = time.monotonic() + self._kill_wait
            while self._kill(reap) and time.monotonic() < deadline:
                time.sleep(POLL)  # noqa: ASYNC251
            raise

    def _kill(self, reap: Callable[[], object]) -> tuple[psutil.Process, ...]:
        left = self.look()
        _send(signal.SIGKILL, left)
        reap()
        return left


def _groups(pid: int) -> tuple[int, int]:
    """The session and the process group of a process. Raises OSError."""
    return os.getsid(pid), os.getpgid(pid)


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _send(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _survivors(processes: Iterable[psutil.Process]) -> StopError:
    names = []
    for process in processes:
        name = "?"
        with contextlib.suppress(psutil.Error):
            name = process.name()
        names.append(f"{process.pid} ({name})")
    return StopError(
        f"still alive after SIGKILL: {', '.join(names)}",
        why="the kernel has not ended them, most often because a driver call is stuck",
        fix="look at `dmesg` and, on a GPU machine, at `nvidia-smi`; then end these pids by hand",
    )
