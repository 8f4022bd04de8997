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
_STEEP = 60  # doublings after which no cap can be lower


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """At most `attempts` tries; before try k + 1 a pause from [0, min(cap, base · 2^(k-1))] s.

    A server that refuses because it is busy (429, 529, or 503 with Retry-After) works, so that its
    refusals are no failed tries: they are waited out, as long as Retry-After says and up to `base`
    on top. A Retry-After longer than `patience` is an error at once, and so is any refusal after
    `endurance` seconds of such waits.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 20.0
    patience: float = 120.0
    endurance: float = 1200.0


class Tried(msgspec.Struct, Generic[T], frozen=True):
    """What came of it, and how many attempts it took."""

    value: T
    attempts: int


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    *,
    retries: Retries,
    exhausted: Callable[[], bool] = lambda: False,
    sleep: Sleep = asyncio.sleep,
    draw: Callable[[], float] = random.random,
) -> Tried[T]:
    """Call `attempt` until it succeeds or fails with something that is not retryable.

    Raises the last error. Once `exhausted` says so, a refusal is an error at once. `draw` gives
    uniform numbers in [0, 1).
    """
    made = failed = 0
    waited = 0.0
    while True:
        made += 1
        try:
            return Tried(await attempt(), made)
        except WireError as error:
            asked = (error.retry_after or 0.0) if isinstance(error, RateLimitedError) else 0.0
            steps = 0 if asked else min(made - 1, _STEEP)
            pause = asked + draw() * min(retries.cap, retries.base * 2.0**steps)
            if isinstance(error, RateLimitedError) and pause > 0:
                too_long = asked > retries.patience or waited > retries.endurance
                given_up = too_long or exhausted()
                waited += pause
            else:
                failed += 1
                given_up = not error.retryable or failed >= retries.attempts
            if given_up:
                if made > 1:
                    error.add_note(f"after {made} attempts")
                raise
        await sleep(pause)
