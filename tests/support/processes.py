"""Starting and finding processes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from enginehouse.processes.process import Command, Process, hold_process


def start_process(command: Command, *, log: Path) -> Process:
    """Begin at once, with nothing to write down first."""
    with hold_process(command, log=log) as held:
        return held.begin()


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; empty if it has ended, also while nobody has waited for it."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []
