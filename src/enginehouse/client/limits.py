"""How many requests may be under way: a number given by the user, or one that follows the queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Load


class Adaptive(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a limit that follows the server's queue, read every `interval` seconds."""

    minimum: int = 1
    maximum: int = 512
    start: int = 16
    interval: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.start <= self.maximum or self.interval <= 0:
            raise ConfigurationError(
                f"adaptive concurrency {self.minimum} ≤ {self.start} ≤ {self.maximum} "
                f"every {self.interval:g} s makes no sense",
                fix="let 1 ≤ minimum ≤ start ≤ maximum, and the interval be positive",
            )

    def up_to(self, most: int) -> Adaptive:
        """The same with no bound above `most`."""
        return msgspec.structs.replace(
            self,
            minimum=min(self.minimum, most),
            maximum=min(self.maximum, most),
            start=min(self.start, most),
        )


class Limit:
    """At most `limit` holders at once, first come, first served; it may be resized any time."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigurationError(f"concurrency must be at least 1, got {limit}")
        self._limit = limit
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.held = 0

    @property
    def limit(self) -> int:
        """How many may hold it."""
        return self._limit

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        return len(self._waiters)

    def resize(self, limit: int) -> None:
        """Change the limit; holders above a smaller one keep what they hold."""
        self._limit = max(1, limit)
        self._wake()

    async def __aenter__(self) -> None:
        if self.held < self._limit and not self._waiters:
            self.held += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release()
            else:
                with suppress(ValueError):  # who released a place has passed it over already
                    self._waiters.remove(waiter)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        self.held -= 1
        self._wake()

    def _wake(self) -> None:
        # the slot passes with the wake-up, so that no newcomer can take it in between
        while self._waiters and self.held < self._limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.held += 1
                waiter.set_result(None)


class AdaptiveController:
    """Steers a Limit by additive increase, multiplicative decrease (Chiu and Jain, 1989).

    While nothing waits in the server the limit doubles until something first waited, then grows by
    a sixteenth at least one; while the server's queue grows it shrinks by a quarter; a queue that
    is stable or draining leaves it alone. It grows only if it was the limit that held us back.
    """

    def __init__(self, limit: Limit, *, bounds: Adaptive) -> None:
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
        elif waiting == 0 and self._limit.held >= current:
            self._set(current * 2 if self._probing else current + max(1, current // 16))

    async def run(
        self,
        read: Callable[[], Awaitable[Load | None]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Observe until cancelled; an idle client does not ask."""
        while True:
            await sleep(self._bounds.interval)
            if self._limit.held:
                self.observe(await read())

    def _set(self, limit: int) -> None:
        self._limit.resize(min(self._bounds.maximum, max(self._bounds.minimum, limit)))
