"""Starting a program on this machine, and stopping it with all its descendants."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from enginehouse.core.errors import StartError
from enginehouse.processes.reaper import Reaper
from enginehouse.processes.tree import (
    KILL_WAIT,
    ORPHAN_GRACE,
    POLL,
    ProcessIdentity,
    ProcessTree,
    identify,
)
from enginehouse.store.private import open_private

LOOK_EVERY = 1.0
# A shell that becomes the program on a signal from us, and ends if we end before that. What shells
# add to the environment is removed again.
_GATE = 'read -r go && exec env -u PWD -u OLDPWD -u SHLVL -u _ "$@" </dev/null'


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A program's argument vector and its whole environment (nothing is inherited).

    The environment's values may be secrets, so the repr leaves them out.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Command(argv={self.argv!r}, env={sorted(self.env)!r})"


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has done so far, in bytes: written to its log, and read from anywhere."""

    logged: int
    read: int


class Process:
    """A child in its own session; its descendants are recorded while it lives.

    If we end without having stopped it, `reaper` does.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        identity: ProcessIdentity,
        *,
        reaper: Reaper,
        log: Path,
        orphan_grace: float,
    ) -> None:
        self._child = child
        self._log = log
        self._reaper = reaper
        self.identity = identity
        self._tree = ProcessTree(identity, orphan_grace=orphan_grace)
        self._stopped = False
        self._watcher = asyncio.create_task(self._watch())

    @property
    def pid(self) -> int:
        """The process id, which is also its session and group id."""
        return self._child.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._child.poll()

    def effort(self) -> Effort:
        """What it and its descendants have done; a log that was removed has nothing in it."""
        logged = self._log.stat().st_size if self._log.exists() else 0
        return Effort(logged=logged, read=self._tree.bytes_read())

    def look(self) -> None:
        """Record its descendants now, without waiting for the next look."""
        self._tree.look()

    def pids(self) -> frozenset[int]:
        """Every process that was ever seen to belong to it."""
        return self._tree.pids

    async def stop(self, *, grace: float) -> None:
        """End it with every descendant: see `ProcessTree.stop`. Idempotent."""
        if self._stopped:
            return
        self._watcher.cancel()
        try:
            await self._tree.stop(grace=grace, reap=self._child.poll)
        finally:  # even cancelled, it has killed what there was
            self._reaper.dismiss()
        # Take the exit status: threads of a leader that is a zombie may still be ending.
        deadline = time.monotonic() + KILL_WAIT
        while self._child.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL)
        self._stopped = True

    def release(self) -> None:
        """Stop watching and leave it running, even after we have ended (a detached server)."""
        self._watcher.cancel()
        self._reaper.dismiss()
        self._child.returncode = 0  # or Popen warns that a child is still running

    async def _watch(self) -> None:
        while self._child.poll() is None:
            self._tree.look()
            if not self._reaper.is_alive():
                self._reaper = Reaper(self.identity, log=self._log)
            await asyncio.sleep(LOOK_EVERY)


@contextmanager
def hold_process(
    command: Command,
    *,
    log: Path,
    orphan_grace: float = ORPHAN_GRACE,
    inherited: Sequence[int] = (),
) -> Iterator[HeldProcess]:
    """A process in its own session, in which the program has not begun yet.

    What must be written down about the process is written in the block, and its last step is
    `HeldProcess.begin`. If the block raises, or ends before, the process is killed. Standard output
    and error are appended to `log`; the file descriptors `inherited` are open in it, under the same
    numbers. Blocks for milliseconds. Raises StartError if the program cannot be run at all.
    """
    program = command.argv[0]
    if shutil.which(program, path=command.env.get("PATH")) is None:
        raise StartError(
            f"cannot run {program}",
            why="it was not found, or is not executable",
            fix="check that the engine environment is still there: enginehouse envs",
        )
    log.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_private(log, os.O_WRONLY | os.O_APPEND), "ab") as output:
        child = subprocess.Popen(
            ("/bin/sh", "-c", _GATE, "sh", *command.argv),
            env=dict(command.env),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=inherited,
        )
    held = HeldProcess(child, log=log, orphan_grace=orphan_grace)
    try:
        yield held
    finally:
        held.abandon()


class HeldProcess:
    """A process that waits to become its program."""

    def __init__(self, child: subprocess.Popen[bytes], *, log: Path, orphan_grace: float) -> None:
        self.identity = identify(child.pid) or ProcessIdentity(pid=child.pid, started=0.0)
        self._child = child
        self._log = log
        self._orphan_grace = orphan_grace
        self._has_begun = False

    def begin(self) -> Process:
        """Run the program. Unless it is released it does not outlive us (see `Reaper`)."""
        assert self._child.stdin is not None
        reaper = Reaper(self.identity, log=self._log)
        try:
            self._child.stdin.write(b"go\n")
            self._child.stdin.close()
        except BaseException:
            reaper.dismiss()
            raise
        self._has_begun = True
        return Process(
            self._child,
            self.identity,
            reaper=reaper,
            log=self._log,
            orphan_grace=self._orphan_grace,
        )

    def abandon(self) -> None:
        """Kill the process unless its program has begun."""
        if not self._has_begun:
            self._child.kill()
            self._child.communicate()
