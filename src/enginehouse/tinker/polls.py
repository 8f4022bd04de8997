"""Long polls: clients that wait for something to happen, and that can all be let go at once."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Polls:
    """Who waits now. A poll costs one timer; its length is the number of polls."""

    def __init__(self) -> None:
        self._limits: set[asyncio.Timeout] = set()
        self._released = False

    def __len__(self) -> int:
        return len(self._limits)

    async def wait(self, event: asyncio.Event, *, seconds: float) -> None:
        """Return when the event is set, when the time is over, or when polls are released."""
        if self._released or seconds <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds) as limit:
                self._limits.add(limit)
                try:
                    await event.wait()
                finally:
                    self._limits.discard(limit)

    def release(self) -> None:
        """End every poll now, and later ones at once."""
        self._released = True
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(0)
