"""What an executor runs, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A program's argument vector and its whole environment (nothing is inherited).

    The environment's values may be secrets: they are in no repr.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Command(argv={self.argv!r}, env={sorted(self.env)!r})"


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has done so far, in bytes: written to its log, and read from anywhere."""

    logged: int
    read: int


class Process(Protocol):
    """A process that an executor started, with all its descendants."""

    @property
    def pid(self) -> int:
        """Its process id, which is also its session and group id."""
        ...

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        ...

    def effort(self) -> Effort:
        """What it and its descendants have done; 0 read where the system does not tell."""
        ...

    async def stop(self, *, grace: float) -> None:
        """SIGTERM, wait `grace` seconds, SIGKILL the group and every descendant.

        Idempotent. Raises StopError, naming pids, if something is alive after that.
        """
        ...


class Executor(Protocol):
    """Runs commands somewhere."""

    async def start(self, command: Command, *, log: Path) -> Process:
        """Start it in a session of its own, standard output and error appended to `log`."""
        ...
