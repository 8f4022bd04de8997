"""Requests that an engine survives only when no other request is in flight."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from enginehouse.client.exchange import Exchange, Forward, Reply
from enginehouse.core.sampler import SampleRequest


class ExclusiveRequests:
    """Layer: a request for which `is_exclusive` is true is in flight only when no other is.

    First come, first served, so neither kind can keep the other waiting forever. Share it among
    all samplers of one server.
    """

    def __init__(self, is_exclusive: Callable[[SampleRequest], bool]) -> None:
        self._is_exclusive = is_exclusive
        self._in_flight = 0
        self._closed = False  # an exclusive request is in flight
        self._queue: deque[tuple[bool, asyncio.Future[None]]] = deque()

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """Wait until the request may be in flight; requests that generate nothing always may."""
        if exchange.sample is None:
            return await forward(exchange)
        exclusive = self._is_exclusive(exchange.sample)
        if self._queue or not self._may_enter(exclusive=exclusive):
            await self._wait(exclusive=exclusive)
        else:
            self._enter(exclusive=exclusive)
        try:
            reply = await forward(exchange)
        except BaseException:
            self._leave()
            raise
        reply.when_closed(self._leave)
        return reply

    def _may_enter(self, *, exclusive: bool) -> bool:
        return not self._closed and not (exclusive and self._in_flight)

    def _enter(self, *, exclusive: bool) -> None:
        self._in_flight += 1
        self._closed = exclusive

    async def _wait(self, *, exclusive: bool) -> None:
        """Enter in turn."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((exclusive, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._advance()
            else:  # it was let in just before
                self._leave()
            raise

    def _leave(self) -> None:
        self._in_flight -= 1
        self._closed = False
        self._advance()

    def _advance(self) -> None:
        """Let in whatever may enter, in order."""
        while self._queue:
            exclusive, waiter = self._queue[0]
            if not waiter.cancelled():
                if not self._may_enter(exclusive=exclusive):
                    return
                self._enter(exclusive=exclusive)
                waiter.set_result(None)
            self._queue.popleft()
