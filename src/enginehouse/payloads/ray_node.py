"""Run one command of a job on a node of a Ray cluster, and end all its processes with it.

The first line of standard input is JSON: `folder` (made if it does not exist), `files` (path
relative to it and text), `before` (lines of shell that run first), `command` (an argv),
`environment` (variables and their values), `from_machine` (variables, and those of this machine
that they are read from) and `grace` (seconds that the command gets to end by itself).

The end of standard input is the order to stop: the parent is gone, or wants it.
The exit code is the command's, or 128 and the number of the signal that ended it. Then no process
that the command started is left, whatever its session. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_POLL = 0.05
# Variables by which Ray makes a process one of its workers.
_OF_WORKERS = {
    "PYTHONBREAKPOINT",
    "RAY_CLIENT_MODE",
    "RAY_JOB_ID",
    "RAY_LD_PRELOAD_ON_WORKERS",
    "RAY_RAYLET_PID",
}


def main() -> None:
    """Read what to run, and run it."""
    # Ray kills the children of a worker that ends. The one that it knows waits here; the other
    # one has the command, and sees the end of its standard input.
    if child := os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _, status = os.waitpid(child, 0)
        sys.exit(_exit_code(status))
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    order = json.loads(_first_line())
    process = _start(order)  # kept: as garbage, it would be waited for by Python
    command = process.pid
    status, deadline = None, None
    while status is None and (deadline is None or time.monotonic() < deadline):
        stopping, _, _ = select.select([0] if deadline is None else [], [], [], _POLL)
        if stopping:
            os.kill(command, signal.SIGTERM)
            deadline = time.monotonic() + order["grace"]
        status = _reap(command)
    _end_descendants(grace=0 if status is None else min(order["grace"], 5))
    sys.exit(_exit_code(signal.SIGKILL if status is None else status))


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := os.read(0, 1)):
            sys.exit(1)
        line += byte
    return line


def _start(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, text in order["files"].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f".{path.name}.{os.getpid()}")
        written.write_text(text, encoding="utf-8")
        written.replace(path)
    machine = {name: os.environ.get(source) for name, source in order["from_machine"].items()}
    environment = {
        **{name: value for name, value in os.environ.items() if name not in _OF_WORKERS},
        **{name: value for name, value in machine.items() if value is not None},
        **order["environment"],
    }
    shell = shutil.which("bash") or "/bin/sh"
    script = f'{order["before"]}\nexec "$@"'
    return subprocess.Popen(
        (shell, "-c", script, shell, *order["command"]),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _reap(command: int) -> int | None:
    """Wait for children that have ended; the command's status if it is one of them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid in (0, command):
            return status if pid else None


def _end_descendants(*, grace: float) -> None:
    """End what the command left behind, politely for `grace` seconds."""
    deadline, number = time.monotonic() + grace, signal.SIGTERM
    while pids := list(_descendants(os.getpid())):
        late = time.monotonic() >= deadline
        for pid in pids if late or number is signal.SIGTERM else ():
            try:
                os.kill(pid, signal.SIGKILL if late else number)
            except ProcessLookupError:
                continue
        number = signal.SIGKILL
        time.sleep(_POLL)
        _reap(0)


def _descendants(pid: int) -> Iterator[int]:
    """The processes below `pid`, since orphans become children of this program."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = [int(word) for word in children.read_text().split()]
        except OSError:
            continue
        for child in pids:
            yield child
            yield from _descendants(child)


def _exit_code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    main()
