"""Requests that a server bears only by themselves, and all the others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from enginehouse.core.sampler import SampleRequest


class Turns:
    """Lets a request of which `alone` is true be under way only when no other is.

    First come, first served, so that neither kind keeps the other waiting for good. To be shared by
    all samplers of one server.
    """

    def __init__(self, alone: Callable[[SampleRequest], bool]) -> None:
        self._alone = alone
        self._inside = 0
        self._closed = False  # somebody is in who must be alone
        self._queue: deque[tuple[bool, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, request: SampleRequest) -> AsyncIterator[None]:
        """Be under way for the length of the block."""
        alone = self._alone(request)
        if self._queue or not self._may_enter(alone):
            await self._wait(alone)
        else:
            self._enter(alone)
        try:
            yield
        finally:
            self._leave()

    def _may_enter(self, alone: bool) -> bool:  # noqa: FBT001
        return not self._closed and not (alone and self._inside)

    def _enter(self, alone: bool) -> None:  # noqa: FBT001
        self._inside += 1
        self._closed = alone

    def _leave(self) -> None:
        self._inside -= 1
        self._closed = False
        self._advance()

    def _advance(self) -> None:
        while self._queue:
            alone, future = self._queue[0]
            gave_up = future.cancelled()
            if not (gave_up or self._may_enter(alone)):
                return
            self._queue.popleft()
            if not gave_up:
                self._enter(alone)
                future.set_result(None)

    async def _wait(self, alone: bool) -> None:  # noqa: FBT001
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((alone, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._advance()
            else:  # it had just been let in
                self._leave()
            raise
