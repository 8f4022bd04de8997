"""A program in the foreground: it has our terminal and standard streams, and we wait for it.

With a controlling terminal the program stays in our process group. So the terminal's own signals
(Ctrl-C, Ctrl-Z, a new size) reach it as they would without us, and a pipeline (`… | less`) works.
Without one it gets a group of its own, which receives what is sent to us, once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from enginehouse.core.errors import CommandNotFoundError, NotExecutableError, StartError
from enginehouse.processes.process import LOOK_EVERY, Command
from enginehouse.processes.reaper import Reaper
from enginehouse.processes.tree import POLL, ProcessIdentity, ProcessTree, identify

GRACE = 10.0  # seconds after SIGTERM for a program that is to end before it wants to
_TERMINAL = "/dev/tty"
_GATE_FD = 9  # what POSIX shells can redirect has one digit
# A shell that becomes the program on a word from us, and ends if we end before that.
_GATE = 'read -r go <&9 && {unset}exec "$@" 9<&-'
_ADDED_BY_SHELLS = ("PWD", "OLDPWD", "SHLVL")
# Python ignores these, and what is ignored stays so in a new program.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_BY_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_SOON = 0.1  # seconds until the second look at the descendants


class ForegroundProcess:
    """A child that shares our terminal; its descendants are recorded while it lives.

    If we end without having stopped it, a reaper does.
    """

    def __init__(self, identity: ProcessIdentity, *, reaper: Reaper, own_group: bool) -> None:
        self.identity = identity
        self._reaper = reaper
        self._own_group = own_group
        self._tree = ProcessTree(identity)
        self._code: int | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self.identity.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        if self._code is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def forward(self, number: int) -> None:
        """Pass on a signal that we have received, unless the terminal has sent it to both of us."""
        if self.exit_code() is not None:
            return
        if self._own_group:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)
        elif number not in _BY_TERMINAL or not _in_foreground():
            os.kill(self.pid, number)  # not reaped yet, so the pid is its own

    async def wait(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal. May be cancelled."""
        next_look, interval = time.monotonic(), _SOON
        while (code := self.exit_code()) is None:
            if time.monotonic() >= next_look:
                self._tree.look()
                if not self._reaper.is_alive():
                    self._reaper = Reaper(self.identity, log=None)
                next_look += interval
                interval = min(2 * interval, LOOK_EVERY)
            await asyncio.sleep(POLL)
        return code

    async def stop(self) -> None:
        """End it with every descendant, also those it has left behind. Raises StopError."""
        try:
            await self._tree.stop(grace=GRACE, reap=self.exit_code)
        finally:
            self._reaper.dismiss()


@asynccontextmanager
async def run_in_foreground(command: Command) -> AsyncIterator[ForegroundProcess]:
    """Run a program in the foreground; it and its descendants have ended when the block is left.

    It inherits our standard streams, working folder and every other open file that we inherited.
    Raises CommandNotFoundError, NotExecutableError and StopError.
    """
    require_program(command)
    process = _start(command)
    try:
        yield process
    finally:
        await process.stop()


def require_program(command: Command) -> None:
    """Raise CommandNotFoundError or NotExecutableError for what a shell could not run either."""
    name, path = command.argv[0], command.env.get("PATH", os.defpath)
    if name and shutil.which(name, path=path) is not None:
        return
    if "/" in name:
        places = [Path(name)]
    else:
        places = [Path(folder or ".") / name for folder in path.split(os.pathsep)]
    for place in places:
        if name and os.path.lexists(place):
            raise NotExecutableError(
                f"cannot run {place}",
                why="it is a folder" if place.is_dir() else "it is not an executable file",
                fix=f"chmod +x {place}; or name the program that reads it, such as python",
            )
    raise CommandNotFoundError(
        f"cannot run {name!r}",
        why="there is no such file" if "/" in name else "it was not found in any folder of PATH",
        fix="check how it is spelled; a line with pipes or variables needs a shell: sh -c '…'",
    )


def _start(command: Command) -> ForegroundProcess:
    unset = "".join(f"unset {name}; " for name in _ADDED_BY_SHELLS if name not in command.env)
    own_group = not _has_terminal()
    gate, opener = os.pipe()
    spawn = partial(os.posix_spawn, setpgroup=0) if own_group else os.posix_spawn
    try:
        pid = spawn(
            "/bin/sh",
            ("/bin/sh", "-c", _GATE.format(unset=unset), "sh", *command.argv),
            command.env,
            file_actions=[(os.POSIX_SPAWN_DUP2, gate, _GATE_FD)],
            setsigdef=_IGNORED_BY_PYTHON,
        )
        identity = identify(pid) or ProcessIdentity(pid=pid, started=0.0)
        reaper = Reaper(identity, log=None)
        os.write(opener, b"go\n")
    except OSError as error:  # too many arguments, or no process can be started
        raise StartError(
            f"cannot run {command.argv[0]}",
            why=error.strerror,
            fix="give fewer or shorter arguments, or look at `ulimit -u` and the free memory",
        ) from error
    finally:
        os.close(gate)
        os.close(opener)
    return ForegroundProcess(identity, reaper=reaper, own_group=own_group)


def _has_terminal() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _in_foreground() -> bool:
    """Whether the terminal's keys send their signals to our process group."""
    try:
        terminal = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
