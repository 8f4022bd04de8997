"""Holds requests back while a server's weights change, and says which weights answered."""

from __future__ import annotations

import asyncio

from enginehouse.client.exchange import Attempt, Exchange, Forward, Reply
from enginehouse.client.wire import InFlight


class SwapGate:
    """Layer: nothing is in flight while the weights change, so a whole answer has one digest.

    Open at first. Share it among all samplers of one server.
    """

    def __init__(self, digest: str) -> None:
        self._digest = digest
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_flight: set[Attempt] = set()

    @property
    def digest(self) -> str:
        """That of the weights that answer, or of those that did before a swap in progress."""
        return self._digest

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """The reply and the digest of the weights that gave it.

        Sent again, to the new weights, if a swap aborted it. A streamed reply counts as in flight
        until it begins: what is left of it is the server's to end.
        """
        while True:
            while not self._open.is_set():  # it may have closed again before this task ran
                await self._open.wait()
            attempt = Attempt(forward(exchange))
            self._in_flight.add(attempt)
            self._idle.clear()
            try:
                reply = await attempt.reply()
            finally:
                self._in_flight.discard(attempt)
                if not self._in_flight:
                    self._idle.set()
            if reply is not None:
                reply.weights_digest = self._digest
                return reply

    async def close(self, in_flight: InFlight) -> None:
        """Let nothing in any more, and wait until nothing is in flight; "abort" sees to that."""
        self._open.clear()
        if in_flight == "abort":
            for attempt in self._in_flight:
                attempt.abort()
        await self._idle.wait()

    def open(self, digest: str) -> None:
        """Let requests in; the weights that answer them have this digest. Idempotent."""
        self.relabel(digest)
        self._open.set()

    def relabel(self, digest: str) -> None:
        """The weights that answer from now on have this digest."""
        self._digest = digest
