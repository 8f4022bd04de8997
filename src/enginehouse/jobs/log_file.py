"""The log of a job whose folder can be read from here."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from enginehouse.core.errors import JobError

_POLL = 0.1


async def read_log(
    path: Path, *, follow: bool, has_ended: Callable[[], Awaitable[bool]]
) -> AsyncIterator[str]:
    """The content of a job's log; with `follow`, what is appended until the job has ended.

    Raises JobError if there is no log.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    try:
        log = path.open("rb")
    except OSError as error:
        raise JobError(
            f"the log of the job in {path.parent} cannot be read",
            why=error.strerror,
            fix="its folder may have been moved or removed: `enginehouse launch info` shows it",
            kind="no_log",
        ) from error
    with log:
        while True:
            ended = not follow or await has_ended()  # before reading: nothing is lost
            while content := log.read(1 << 16):
                yield decoder.decode(content)
            if ended:
                return
            await asyncio.sleep(_POLL)
