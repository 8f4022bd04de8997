"""Starting a process about which nothing has to be written down first."""

from __future__ import annotations

from pathlib import Path

from enginehouse.processes.process import Command, Process, hold_process


def start_process(command: Command, *, log: Path) -> Process:
    """Begin at once."""
    with hold_process(command, log=log) as held:
        return held.begin()
