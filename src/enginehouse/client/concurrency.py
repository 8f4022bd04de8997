"""How many requests may be in flight: a fixed number, or one that follows the server's queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from enginehouse.client.exchange import Exchange, Forward, Reply
from enginehouse.core.errors import ConfigurationError, WireError
from enginehouse.core.sampler import Load


class Adaptive(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a limit that follows the server's queue.

    The queue is read every `interval` seconds; a reading that takes longer than `timeout` is given
    up, as it says nothing about the queue by then.
    """

    minimum: int = 1
    maximum: int = 512
    start: int = 16
    interval: float = 1.0
    timeout: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.start <= self.maximum or self.interval <= 0:
            raise ConfigurationError(
                f"adaptive concurrency {self.minimum} ≤ {self.start} ≤ {self.maximum} "
                f"every {self.interval:g} s is not possible",
                fix="choose 1 ≤ minimum ≤ start ≤ maximum and a positive interval",
            )

    def up_to(self, most: int) -> Adaptive:
        """The same bounds, none of them above `most`."""
        return msgspec.structs.replace(
            self,
            minimum=min(self.minimum, most),
            maximum=min(self.maximum, most),
            start=min(self.start, most),
        )


class ConcurrencyLimit:
    """Layer: at most `limit` requests in flight, first come, first served; resizable."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigurationError(f"concurrency must be at least 1, got {limit}")
        self.limit = limit
        self.in_flight = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return len(self._waiters)

    def resize(self, limit: int) -> None:
        """Change the limit; requests above a smaller one stay in flight."""
        self.limit = max(1, limit)
        self._wake()

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """Wait for a place, and keep it until the reply is whole or closed."""
        if not exchange.limited:
            return await forward(exchange)
        if self.in_flight < self.limit and not self._waiters:
            self.in_flight += 1
        else:
            await self._wait()
        try:
            reply = await forward(exchange)
        except BaseException:
            self._release()
            raise
        reply.when_closed(self._release)
        return reply

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release()
            else:
                with suppress(ValueError):  # `_wake` has skipped it already
                    self._waiters.remove(waiter)
            raise

    def _release(self) -> None:
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        # the place is handed over with the wake-up, so no newcomer can take it in between
        while self._waiters and self.in_flight < self.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)


class AdaptiveController:
    """Steers a limit by additive increase, multiplicative decrease (Chiu and Jain, 1989).

    While nothing waits in the server, the limit doubles until something has waited once, then grows
    by a sixteenth (at least 1). While the server's queue grows, it shrinks by a quarter; a queue
    that is stable or draining leaves it alone. It grows only if all its places were taken.
    """

    def __init__(self, limit: ConcurrencyLimit, *, bounds: Adaptive) -> None:
        self._limit = limit
        self._bounds = bounds
        self._last_waiting = 0
        self._probing = True

    def observe(self, load: Load | None) -> None:
        """Adjust the limit to one reading; None (the server does not say) changes nothing."""
        if load is None:
            return
        current = self._limit.limit
        waiting, before = load.waiting, self._last_waiting
        self._last_waiting = waiting
        if waiting > before:
            self._probing = False
            self._set(current * 3 // 4)
        elif waiting == 0 and self._limit.in_flight >= current:
            self._set(current * 2 if self._probing else current + max(1, current // 16))

    async def run(
        self,
        read: Callable[[], Awaitable[Load | None]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Observe until cancelled; nothing is read while no request is in flight."""
        while True:
            await sleep(self._bounds.interval)
            if self._limit.in_flight:
                with suppress(WireError, TimeoutError):
                    async with asyncio.timeout(self._bounds.timeout):
                        self.observe(await read())

    def _set(self, limit: int) -> None:
        self._limit.resize(min(self._bounds.maximum, max(self._bounds.minimum, limit)))
