"""The machine where Slurm's programs are called: this one, or a login node through ssh."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from enginehouse.core.errors import JobError

_CONNECT = 15  # seconds
_COMMAND = 120.0  # seconds for a script, on a login node that many people use
_STALLED = 20  # seconds without a sign of life until a connection counts as lost
_MARK = b"\x1e"  # ends what a user's .bashrc prints before a script runs
_LONGEST = 600  # characters of what a program says

# What ssh says, the kind of error that it means, and what to do about it.
_CONNECTION_ERRORS = (
    (
        "permission denied",
        "ssh_permission",
        "ssh is used without passwords: load a key into ssh-agent, or set `username`",
    ),
    (
        "host key verification failed",
        "ssh_host_key",
        "connect once by hand with ssh, and check the key",
    ),
    ("could not resolve", "unreachable", "check `execution.hostname`, and that the VPN is up"),
    ("bad configuration option", "ssh_option", "check `execution.ssh_options`"),
)


@dataclass(frozen=True)
class Finished:
    """What a script printed, and its exit code."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """The output as text."""
        return self.out.decode(errors="replace")


class LoginNode:
    """Runs scripts in bash, which reads them from its standard input, so that `ps` shows nothing.

    Connections to a host are shared by all scripts, and closed at the end of the block.
    """

    def __init__(
        self, hostname: str | None, *, username: str | None, options: Mapping[str, str | int]
    ) -> None:
        self.hostname = hostname
        self._username = username
        self._options = options
        self._sockets: Path | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._sockets is not None:
            with suppress(JobError):
                await self._communicate((*self._ssh(), "-O", "exit", self._destination()), b"")
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    @property
    def place(self) -> str:
        """The machine, for messages."""
        return self.hostname or "this machine"

    async def run(self, script: str, *, patience: float = _COMMAND) -> Finished:
        """Run the script to its end, for at most `patience` seconds.

        Raises JobError if the machine cannot be reached, or does not answer in that time.
        """
        if self.hostname is None:
            return await self._communicate(("bash", "-s"), script.encode(), patience=patience)
        finished = await self._communicate(
            (*self._ssh(), self._destination(), "exec bash -s"),
            f"printf '\\036'\n{script}".encode(),
            patience=patience,
        )
        if finished.code == 255:  # ssh's own; no script ends with it
            raise _connection_error(self.hostname, finished.err)
        return Finished(finished.code, finished.out.partition(_MARK)[2], finished.err)

    def command_line(self) -> tuple[str, ...]:
        """The argv that a script is given to."""
        if self.hostname is None:
            return ("bash", "-s")
        options = (f"-o{name}={value}" for name, value in self._options.items())
        return ("ssh", *options, self._destination(), "exec bash -s")

    def _destination(self) -> str:
        return f"{self._username}@{self.hostname}" if self._username else str(self.hostname)

    def _ssh(self) -> tuple[str, ...]:
        if self._sockets is None:
            self._sockets = Path(tempfile.mkdtemp(prefix="ssh-", dir="/tmp"))
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": _CONNECT,
            "ServerAliveInterval": _STALLED // 2,
            "ServerAliveCountMax": 2,
            "LogLevel": "ERROR",
            "ControlMaster": "auto",
            "ControlPath": self._sockets / "%C",
            "ControlPersist": 60,
            **self._options,
        }
        return ("ssh", "-T", *(f"-o{name}={value}" for name, value in options.items()))

    async def _communicate(
        self, argv: tuple[str, ...], script: bytes, *, patience: float = _COMMAND
    ) -> Finished:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise JobError(
                f"the program {argv[0]} is not installed here",
                fix="install OpenSSH's client" if argv[0] == "ssh" else "install bash",
                kind="no_program",
            ) from error
        try:
            async with asyncio.timeout(patience):
                out, err = await process.communicate(script)
        except TimeoutError as error:
            raise JobError(
                f"{self.place} did not answer for {patience:.0f} s",
                fix="try again later; if that does not help, contact the cluster's support",
                kind="unreachable",
            ) from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        assert process.returncode is not None
        return Finished(process.returncode, out, err.decode(errors="replace"))


def _connection_error(hostname: str, said: str) -> JobError:
    kind, fix = next(
        ((kind, fix) for words, kind, fix in _CONNECTION_ERRORS if words in said.lower()),
        ("unreachable", f"check that `ssh {hostname}` works in a terminal"),
    )
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return JobError(
        f"the login node {hostname} could not be reached",
        why="; ".join(lines)[-_LONGEST:] or "the connection was closed",
        fix=fix,
        kind=kind,
    )
