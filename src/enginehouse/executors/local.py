"""Processes on this machine."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from enginehouse.core.errors import StartError
from enginehouse.executors.base import Command
from enginehouse.executors.tree import ProcessIdentity, ProcessTree, identify

LOOK_EVERY = 1.0


class LocalProcess:
    """A child in a session of its own; its descendants are noted while it lives."""

    def __init__(self, child: subprocess.Popen[bytes], identity: ProcessIdentity) -> None:
        self._child = child
        self.identity = identity
        self._tree = ProcessTree(identity)
        self._stopped = False
        self._watch = asyncio.create_task(self._look_again_and_again())

    @property
    def pid(self) -> int:
        """The process id, which is also its session and group id."""
        return self._child.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._child.poll()

    async def stop(self, *, grace: float) -> None:
        """End it with every descendant: see `ProcessTree.stop`. Idempotent."""
        if self._stopped:
            return
        self._watch.cancel()
        await self._tree.stop(grace=grace, reap=self._child.poll)
        self._stopped = True

    def release(self) -> None:
        """Stop watching and leave it running, whatever becomes of us (a detached server)."""
        self._watch.cancel()
        self._child.returncode = 0  # or Popen warns that a child is still running

    async def _look_again_and_again(self) -> None:
        while self._child.poll() is None:
            self._tree.look()
            await asyncio.sleep(LOOK_EVERY)


class LocalExecutor:
    """Runs commands on this machine."""

    async def start(self, command: Command, *, log: Path) -> LocalProcess:
        """Start it in a session of its own, standard output and error appended to `log`.

        Blocks for milliseconds. Raises StartError if the program cannot be run at all.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                child = subprocess.Popen(  # noqa: ASYNC220 - a cancelled await would lose the child
                    command.argv,
                    env=dict(command.env),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise StartError(
                f"cannot run {command.argv[0]}",
                why=str(error),
                fix="check that the engine environment is still there: enginehouse envs",
            ) from error
        identity = identify(child.pid)
        if identity is None:  # it has ended already: what matters is its exit code, and its log
            identity = ProcessIdentity(pid=child.pid, started=0.0)
        return LocalProcess(child, identity)
