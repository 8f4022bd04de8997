"""Runs uv and the payloads: output goes to a log and a callback, and no process is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from enginehouse.processes.reaper import Reaper
from enginehouse.processes.tree import identify
from enginehouse.store.layout import Layout
from enginehouse.store.private import open_private

PAYLOADS = Path(__file__).parents[1] / "payloads"
_LONGEST_LINE = 16 * 2**20


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A program that has ended. `returncode` is negative for a signal."""

    returncode: int
    output: str
    errors: str

    def why(self) -> str | None:
        """The last line that it wrote to standard error, or else to standard output."""
        lines = [line.strip() for line in (self.output + "\n" + self.errors).splitlines()]
        return next((line for line in reversed(lines) if line), None)


def new_log(layout: Layout, name: str) -> Path:
    """An empty log file that no other process uses.

    Raises OSError if the state folder cannot be written: here, rather than later, when the program
    that writes the log would be blamed.
    """
    layout.make_private(layout.logs)
    log = layout.logs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    log.touch()
    return log


def python_environ(*, write_bytecode: bool) -> dict[str, str]:
    """The environment for another Python: ours without what would change its imports.

    With `write_bytecode` the first import compiles only the modules that are used, which takes
    less time than compiling all of them at install, and speeds up every later start.
    """
    dropped = {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    if write_bytecode:
        dropped.add("PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"PYTHONNOUSERSITE": "1"}


async def run_program(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    on_line: Callable[[str], None] | None = None,
) -> Finished:
    """Run a program to its end, whatever its exit status, appending its output to `log`.

    `on_line` is given each line of standard error. If this is cancelled, the program and the
    processes that it started are killed first; if we are killed, a reaper ends them. Raises
    OSError if the program cannot be started.
    """
    with os.fdopen(open_private(log, os.O_WRONLY | os.O_APPEND), "ab") as sink:
        sink.write(f"$ {shlex.join(argv)}\n".encode())
        sink.flush()
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=env,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,
        )
        leader = identify(process.pid)
        reaper = Reaper(leader, log=log) if leader else None
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            output, errors, returncode = await asyncio.gather(
                _tee(process.stdout, sink, None),
                _tee(process.stderr, sink, on_line),
                process.wait(),
            )
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            if reaper is not None:
                reaper.dismiss()
        return Finished(returncode=returncode, output=output, errors=errors)


async def _tee(
    stream: asyncio.StreamReader, sink: IO[bytes], on_line: Callable[[str], None] | None
) -> str:
    lines = []
    async for raw in stream:
        sink.write(raw)
        sink.flush()
        line = raw.decode(errors="replace")
        lines.append(line)
        if on_line is not None:
            on_line(line.rstrip())
    return "".join(lines)
