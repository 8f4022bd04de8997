"""A PostgreSQL server of the tests' own, started from Debian's programs.

It listens on a socket in a folder that only its user may enter, and not on the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg

_USER = "tinker"


class PostgresMissingError(Exception):
    """There are no programs to start a server from; says which were looked for."""


@dataclass
class PostgresServer:
    """A running server, whose socket is in `folder`; `restart` ends all of its connections."""

    folder: Path
    restart: Callable[[], None]
    _numbers: Iterator[int] = field(default_factory=count)

    def new_database(self) -> str:
        """Make an empty database, and return its URL."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://{_USER}@/{name}?host={self.folder}"

    def _address(self, database: str) -> str:
        return f"host={self.folder} user={_USER} dbname={database}"


def _programs() -> Path:
    places = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").is_file() and (place / "postgres").is_file():
            return place
    raise PostgresMissingError(
        "initdb and postgres are neither in PATH nor in /usr/lib/postgresql:"
        " apt-get install --no-install-recommends postgresql"
    )


def _account() -> dict[str, str | list[str]]:
    """Who runs the server: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server for the length of the block. Raises PostgresMissingError."""
    programs, account = _programs(), _account()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [programs / program, "--pgdata", data, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath},
            **account,
        )

    try:
        if account:
            shutil.chown(folder, "postgres", "postgres")
        words = ("--username", _USER, "--auth", "trust", "--encoding", "UTF8")
        run("initdb", *words, "--locale", "C.UTF-8", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "--silent", "--log", f"{folder}/log", "--options", options, "start")
        try:
            yield PostgresServer(
                folder, lambda: run("pg_ctl", "--silent", "--mode", "immediate", "restart")
            )
        finally:
            run("pg_ctl", "--silent", "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
