"""Ends a process tree when the process that would have ended it is gone, even by kill -9.

The reaper is a process in its own session, whose standard input is a pipe that only its parent
holds open: the kernel closes that end with the parent, however that ends. It blocks every signal
that can be blocked, so it survives what ends a whole group or job (Ctrl-C, a closed terminal, a
batch system's SIGTERM) for long enough to do its work.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from enginehouse.processes.tree import ProcessIdentity, ProcessTree
from enginehouse.store.private import open_private

GRACE = 10.0  # seconds for the tree to end by itself
_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_LOOK_EVERY = 2.0


class Reaper:
    """The parent's side: from now on the tree of `leader` does not outlive us.

    Returns at once: the reaper watches the pipe, so it need not have started watching yet. Its
    messages are appended to `log`, if there is one.
    """

    def __init__(self, leader: ProcessIdentity, *, log: Path | None) -> None:
        words = (str(leader.pid), repr(leader.started), leader.boot)
        # The child inherits the mask, so it blocks these signals from the beginning.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            with _opened(log) as output:
                self._child = subprocess.Popen(
                    (sys.executable, "-P", "-m", "enginehouse.processes.reaper", *words),
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def is_alive(self) -> bool:
        """Whether it still watches; it may have been killed."""
        return self._child.poll() is None

    def dismiss(self) -> None:
        """End the reaper but not the tree, which is gone or is meant to outlive us. Idempotent."""
        self._child.kill()
        self._child.communicate()


def _opened(log: Path | None) -> BinaryIO:
    if log is None:
        return Path(os.devnull).open("ab")
    return os.fdopen(open_private(log, os.O_WRONLY | os.O_APPEND), "ab")


def main(argv: Sequence[str]) -> int:
    """Wait for the parent's end, then end the tree of the leader that `argv` identifies."""
    pid, started, boot = argv
    tree = ProcessTree(ProcessIdentity(pid=int(pid), started=float(started), boot=boot))
    tree.look()
    parent = sys.stdin.fileno()
    while not select.select([parent], [], [], _LOOK_EVERY)[0]:
        tree.look()
    if left := tree.look():
        sys.stderr.write(
            f"enginehouse: the process that started this server is gone; ending {len(left)} "
            f"processes (pid {', '.join(str(process.pid) for process in left)})\n"
        )
        sys.stderr.flush()
        asyncio.run(tree.stop(grace=GRACE))
    return os.EX_OK


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
