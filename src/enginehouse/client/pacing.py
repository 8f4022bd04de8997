"""Waiting for a hosted API's rate limits instead of hitting them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping

from enginehouse.client.exchange import Exchange, Forward, Reply
from enginehouse.client.rate_limits import Budget, read_budgets
from enginehouse.core.errors import RateLimitedError

# the placeholder is one of: remaining, reset, limit
_REQUESTS = ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}", "x-ratelimit-{}")
_TOKENS = (
    "x-ratelimit-{}-tokens",
    "anthropic-ratelimit-tokens-{}",
    "anthropic-ratelimit-input-tokens-{}",
    "anthropic-ratelimit-output-tokens-{}",
)


class Pacing:
    """Layer: holds requests back while the API's headers say that no more are allowed.

    A wait of more than `patience` seconds is an error at once. After `endurance` seconds without a
    single success nothing waits any more: `exhausted` is true, and each request is sent once.
    """

    def __init__(
        self,
        *,
        patience: float,
        endurance: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._patience = patience
        self._endurance = endurance
        self._clock = clock
        self._sleep = sleep
        self._sent = 0  # requests so far; the n-th has the number n
        self._newest = 0  # the latest request whose reply stated a budget
        self._remaining = math.inf  # requests that may be sent until `_refilled`
        self._refilled = 0.0
        self._window: Budget | None = None  # as the latest reply stated it
        self._closed_until = 0.0
        self._held_since: float | None = None

    @property
    def exhausted(self) -> bool:
        """Whether nothing has succeeded for so long that waiting has become pointless."""
        return self._held_since is not None and self._clock() - self._held_since > self._endurance

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """Wait until a request may be sent. Raises RateLimitedError if that takes too long."""
        while (wait := self._seconds_to_wait()) > 0 and not self.exhausted:
            if wait > self._patience:
                raise RateLimitedError(
                    f"the API's rate limit is used up for another {wait:,.0f} s",
                    retry_after=wait,
                    why="the headers of its replies say so; nothing was sent",
                    fix="try again then, lower --concurrency, or ask the vendor for a higher limit",
                )
            self._hold()
            await self._sleep(wait)
        self._sent += 1
        self._remaining -= 1
        number = self._sent
        reply = await forward(exchange)
        self._note_budgets(number, reply.wire.headers)
        if isinstance(reply.error, RateLimitedError):
            self._hold()
            closed_until = self._clock() + (reply.error.retry_after or 0.0)
            self._closed_until = max(self._closed_until, closed_until)
        else:
            self._held_since = None
        return reply

    def _seconds_to_wait(self) -> float:
        now = self._clock()
        if self._remaining <= 0 and self._window is not None and now >= self._refilled:
            # until a reply says otherwise, assume another window like the last one
            self._remaining = self._window.limit
            self._refilled = now + self._window.reset
        return max(self._closed_until, self._refilled if self._remaining <= 0 else 0.0) - now

    def _note_budgets(self, number: int, headers: Mapping[str, str]) -> None:
        now = self._clock()
        # a reply to an earlier request knows less than one to a later request
        if number > self._newest and (budgets := read_budgets(headers, _REQUESTS)):
            self._newest = number
            self._window = budgets[0]
            self._remaining = self._window.remaining - (self._sent - number)
            self._refilled = now + self._window.reset
        for budget in read_budgets(headers, _TOKENS):
            if budget.remaining <= 0:
                self._closed_until = max(self._closed_until, now + budget.reset)

    def _hold(self) -> None:
        if self._held_since is None:
            self._held_since = self._clock()
