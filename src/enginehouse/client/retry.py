"""When to send a request again: exponential back-off with full jitter.

Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec

from enginehouse.client.exchange import Exchange, Forward, Reply
from enginehouse.client.pacing import Pacing
from enginehouse.core.errors import ConnectionFailedError, RateLimitedError, WireError
from enginehouse.core.sampler import Delivery

Sleep = Callable[[float], Awaitable[None]]
_MOST_DOUBLINGS = 60  # beyond that every cap has been reached


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """At most `attempts` tries; before try k + 1 a pause from [0, min(cap, base · 2^(k-1))] s.

    A server that refuses because it is busy (429, 529, or 503 with Retry-After) is working, so its
    refusals do not count as failed tries: they are waited out, for as long as Retry-After says plus
    up to `base`. A Retry-After longer than `patience` is an error at once, and so is any refusal
    after `endurance` seconds of such waits.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 20.0
    patience: float = 120.0
    endurance: float = 1200.0


class Retrying:
    """Layer: sends again what failed with something that may pass, until the reply begins.

    Raises the last error. Once `pacing` is exhausted, a refusal is an error at once. `draw` gives
    uniform numbers in [0, 1).
    """

    def __init__(
        self,
        retries: Retries,
        *,
        pacing: Pacing | None = None,
        sleep: Sleep = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._retries = retries
        self._pacing = pacing
        self._sleep = sleep
        self._draw = draw

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """The first reply that is not an error, with the number of attempts it took."""
        retries = self._retries
        most = _attempts(exchange, otherwise=retries.attempts)
        attempts = failures = 0
        waited = 0.0
        while True:
            attempts += 1
            try:
                reply = await forward(exchange)
                if reply.error is not None:
                    raise reply.error
            except WireError as error:
                named = (error.retry_after or 0.0) if isinstance(error, RateLimitedError) else 0.0
                doublings = 0 if named else min(attempts - 1, _MOST_DOUBLINGS)
                pause = named + self._draw() * min(retries.cap, retries.base * 2.0**doublings)
                if isinstance(error, RateLimitedError) and pause > 0:
                    too_long = named > retries.patience or waited > retries.endurance
                    give_up = too_long or (self._pacing is not None and self._pacing.exhausted)
                    waited += pause
                else:
                    failures += 1
                    give_up = not error.retryable or failures >= most
                if give_up:
                    if attempts > 1:
                        error.add_note(f"after {attempts} attempts")
                    raise
                if isinstance(error, ConnectionFailedError):
                    # the server may be closing our other kept connections, too
                    wire = msgspec.structs.replace(exchange.wire, fresh=True)
                    exchange = msgspec.structs.replace(exchange, wire=wire)
            else:
                reply.attempts = attempts
                return reply
            await self._sleep(pause)


def _attempts(exchange: Exchange, *, otherwise: int) -> int:
    """How often the exchange may be tried: as its request says, if it says so."""
    delivery = exchange.sample.delivery if exchange.sample else None
    if not isinstance(delivery, Delivery) or delivery.max_retries is None:
        return otherwise
    return 1 + delivery.max_retries
