"""When to ask again: exponential back-off with full jitter.

Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from enginehouse.core.errors import RateLimitedError, WireError

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """At most `attempts` tries; before try k + 1 a pause from [0, min(cap, base · 2^(k-1))] s.

    A server's Retry-After is waited for in full, unless it is longer than `patience` seconds: then
    the error is raised at once.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 20.0
    patience: float = 120.0


class Tried(msgspec.Struct, Generic[T], frozen=True):
    """What came of it, and how many attempts it took."""

    value: T
    attempts: int


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    *,
    retries: Retries,
    sleep: Sleep = asyncio.sleep,
    draw: Callable[[], float] = random.random,
) -> Tried[T]:
    """Call `attempt` until it succeeds or fails with something that is not retryable.

    Raises the last error. `draw` gives uniform numbers in [0, 1).
    """
    made = 0
    while True:
        made += 1
        try:
            return Tried(await attempt(), made)
        except WireError as error:
            pause = _pause(error, made=made, retries=retries, draw=draw)
            if pause is None:
                if made > 1:
                    error.add_note(f"after {made} attempts")
                raise
        await sleep(pause)


def _pause(
    error: WireError, *, made: int, retries: Retries, draw: Callable[[], float]
) -> float | None:
    """Seconds to wait before the next attempt, None if there must not be one."""
    if not error.retryable or made >= retries.attempts:
        return None
    jitter = draw() * min(retries.cap, retries.base * 2.0 ** (made - 1))
    if isinstance(error, RateLimitedError) and error.retry_after is not None:
        return error.retry_after + jitter if error.retry_after <= retries.patience else None
    return jitter
