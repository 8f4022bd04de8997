"""Terminals: a stream that says it is one, and the command line on a real one."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.command_line import House


class TerminalStream(io.StringIO):
    """Text in memory that a console takes for a terminal; TERM and COLUMNS describe it."""

    def isatty(self) -> bool:
        """It is."""
        return True


def on_a_terminal(house: House, *words: str, typed: str = "", **env: str) -> tuple[int, str]:
    """Exit code and screen of `enginehouse WORDS` on a terminal of 120 columns.

    `typed` is typed as soon as it shows a prompt ("> ").
    """
    variables: Mapping[str, str] = house.env | {"TERM": "xterm", "COLUMNS": "120"} | env
    screen, terminal = pty.openpty()
    argv = [sys.executable, "-m", "enginehouse", *words]
    files = [(os.POSIX_SPAWN_DUP2, terminal, number) for number in (0, 1, 2)]
    os.set_inheritable(terminal, True)
    here = Path.cwd()
    os.chdir(house.work)
    try:
        pid = os.posix_spawn(argv[0], argv, variables, file_actions=files)
    finally:
        os.chdir(here)
        os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(screen, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
        if typed and shown.endswith(b"> "):
            line, _, typed = typed.partition("\n")
            os.write(screen, line.encode() + b"\n")
    os.close(screen)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()
