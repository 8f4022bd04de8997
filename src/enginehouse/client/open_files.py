"""How many files this process may open. Each connection takes one at either end."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from enginehouse.core.errors import OpenFilesError

if sys.platform != "win32":
    import resource

_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_ENOUGH = 65536
_RESERVE = 64  # for logs, the journal, child processes, health checks
_OWN_FILES = (Path("/proc/self/fd"), Path("/dev/fd"))
_NONE_LEFT = {errno.EMFILE, errno.ENFILE}

_T = TypeVar("_T")


def raise_open_file_limit() -> None:
    """Raise the soft limit towards the hard one, for this process and those that it starts.

    Does nothing where the system does not allow it.
    """
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    for limit in (wanted, 10240):  # the most that macOS allows, whatever its hard limit says
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(limit, wanted)), hard))
        except (OSError, ValueError):
            continue
        return


def open_file_limit() -> int | None:
    """How many files this process may have open; None if there is no limit."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def most_connections() -> int | None:
    """How many connections this process can open besides the files that are open already.

    At least 1; None if there is no limit.
    """
    limit = open_file_limit()
    return None if limit is None else max(1, limit - _open_now() - _RESERVE)


def no_file_left(error: OSError) -> bool:
    """Whether a connection failed for lack of a file descriptor, in this process or the machine.

    A failed name look-up does not give its reason, so this tries to open a file itself.
    """
    if error.errno in _NONE_LEFT:
        return True
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as second:
        return second.errno in _NONE_LEFT
    return False


async def with_patience(
    connect: Callable[[], Awaitable[_T]], *, base_url: str, pauses: Sequence[float] = _PAUSES
) -> _T:
    """What `connect` returns, which is called again while no file descriptor is left for it.

    `pauses` are the seconds between two calls. Raises OpenFilesError if none is given back in
    time, and what else `connect` raises.
    """
    import asyncio  # commands that ask nothing import this module, too

    for pause in (*pauses, None):
        try:
            return await connect()
        except OSError as error:
            if not no_file_left(error):
                raise
        if pause is not None:  # until another request closes its connection
            await asyncio.sleep(pause)
    raise OpenFilesError(
        f"no connection to {base_url}: this process has too many open files",
        why=f"it may open {open_file_limit()} (ulimit -n), or all processes have "
        "reached the machine's own limit together; the server is not to blame",
        fix="raise the limit (ulimit -n 65536), or lower --concurrency; then resume",
    )


def _open_now() -> int:
    for folder in _OWN_FILES:
        try:
            return sum(1 for _ in folder.iterdir())
        except OSError:
            continue
    return 0
