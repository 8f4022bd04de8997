"""A hosted API's rate limits, as its replies' headers tell them, and waiting before they are hit.

Headers: Retry-After (RFC 9110, 10.2.3) and retry-after-ms; x-ratelimit-remaining-* and -reset-*
(https://platform.openai.com/docs/guides/rate-limits); anthropic-ratelimit-*-remaining and -reset
(https://docs.anthropic.com/en/api/rate-limits); X-RateLimit-Remaining and -Reset (OpenRouter).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime

import msgspec

from enginehouse.core.errors import RateLimitedError

# the gap is for: remaining, reset, limit
_REQUESTS = ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}", "x-ratelimit-{}")
_TOKENS = (
    "x-ratelimit-{}-tokens",
    "anthropic-ratelimit-tokens-{}",
    "anthropic-ratelimit-input-tokens-{}",
    "anthropic-ratelimit-output-tokens-{}",
)
_PART = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_EPOCH = 1e9  # a number above it is a moment, not a duration; above 1e12 it is in milliseconds
_EPOCH_MS = 1e12


class Pace:
    """Holds requests back while their API says that nothing remains; shared by one sampler's.

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
        self._told = 0  # the latest request whose reply told what is left
        self._left = math.inf  # requests that may be sent until `_refilled`
        self._refilled = 0.0
        self._window: _Budget | None = None  # as the latest reply told it
        self._shut_until = 0.0
        self._held_since: float | None = None

    @property
    def exhausted(self) -> bool:
        """Whether nothing has succeeded for so long that waiting has become pointless."""
        return self._held_since is not None and self._clock() - self._held_since > self._endurance

    async def turn(self) -> int:
        """Wait until a request may be sent; its number. Raises RateLimitedError for a long wait."""
        while (wait := self._wait()) > 0 and not self.exhausted:
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
        self._left -= 1
        return self._sent

    def note(self, number: int, headers: Mapping[str, str]) -> None:
        """Take in what the reply to request `number` says is left."""
        now = self._clock()
        # an earlier request's reply knows less than a later one's
        if number > self._told and (found := _budgets(headers, _REQUESTS)):
            self._told = number
            self._left = found[0].remaining - (self._sent - number)
            self._refilled = now + found[0].reset
            self._window = found[0]
        for budget in _budgets(headers, _TOKENS):
            if budget.remaining <= 0:
                self._shut_until = max(self._shut_until, now + budget.reset)

    def succeeded(self) -> None:
        """A request was answered."""
        self._held_since = None

    def refused(self, retry_after: float | None) -> None:
        """A request was refused for coming too early: let no other come before its time."""
        self._hold()
        self._shut_until = max(self._shut_until, self._clock() + (retry_after or 0.0))

    def _hold(self) -> None:
        if self._held_since is None:
            self._held_since = self._clock()

    def _wait(self) -> float:
        now = self._clock()
        if self._left <= 0 and self._window is not None and now >= self._refilled:
            # until a reply tells more, another window like the last one
            self._left = self._window.limit
            self._refilled = now + self._window.reset
        return max(self._shut_until, self._refilled if self._left <= 0 else 0.0) - now


class _Budget(msgspec.Struct, frozen=True):
    """What remains of one kind, the seconds until it is refilled, and how much there is then."""

    remaining: float
    reset: float
    limit: float


def _budgets(headers: Mapping[str, str], names: tuple[str, ...]) -> list[_Budget]:
    found = []
    for name in names:
        if (given := headers.get(name.format("remaining"))) is not None:
            with suppress(ValueError):
                reset = seconds_until(
                    headers.get(name.format("reset"), ""), now=_server_time(headers)
                )
                limit = float(headers.get(name.format("limit"), math.inf))
                found.append(_Budget(float(given), reset, max(1.0, limit)))
    return found


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that an error reply asks to wait; None if it names none that can be read."""
    with suppress(KeyError, ValueError):
        return _bounded(float(headers["retry-after-ms"]) / 1000)
    given = headers.get("Retry-After")
    if given is None:
        return None
    with suppress(ValueError):
        return _bounded(float(given))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(given).timestamp() - _server_time(headers))
    return None


def seconds_until(reset: str, *, now: float) -> float:
    """A reset header's value as seconds: 6m0s, 59.7s, 12ms, a number of seconds, or a moment.

    Moments: RFC 3339, or seconds or milliseconds since the epoch, as `now`. Raises ValueError.
    """
    parts = _PART.findall(reset)
    if parts and "".join(number + unit for number, unit in parts) == reset:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        value = float(reset)
    except ValueError:
        return max(0.0, datetime.fromisoformat(reset).timestamp() - now)
    if not math.isfinite(value):
        raise ValueError(reset)
    if value > _EPOCH_MS:
        value /= 1000
    return max(0.0, value - now if value > _EPOCH else value)


def _server_time(headers: Mapping[str, str]) -> float:
    """Seconds since the epoch by the server's clock, by ours where it does not tell."""
    with suppress(KeyError, ValueError):
        return parsedate_to_datetime(headers["Date"]).timestamp()
    return time.time()


def _bounded(seconds: float) -> float | None:
    return seconds if 0 <= seconds < math.inf else None
