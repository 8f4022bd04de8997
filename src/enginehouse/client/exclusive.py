"""Requests that crash an engine, or get wrong answers, beside certain others."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection
from enum import Enum, auto

from enginehouse.client.exchange import Exchange, Forward, Reply
from enginehouse.core.sampler import SampleRequest


class _Kind(Enum):
    """What matters to a layer about a request. One of no kind never waits."""

    ALONE = auto()
    ANY = auto()
    NAMED = auto()
    CANDIDATES = auto()


class _KeptApart:
    """Layer: requests of two kinds that conflict are not in flight at the same time.

    First come, first served, so no kind can keep another waiting forever. Share it among all
    samplers of one server.
    """

    def __init__(
        self,
        kind: Callable[[SampleRequest], _Kind | None],
        conflicts: Collection[frozenset[_Kind]],
    ) -> None:
        self._kind = kind
        self._conflicts = conflicts
        self._in_flight: Counter[_Kind] = Counter()
        self._queue: deque[tuple[_Kind, asyncio.Future[None]]] = deque()

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """Wait until the request may be in flight; requests that generate nothing always may."""
        kind = None if exchange.sample is None else self._kind(exchange.sample)
        if kind is None:
            return await forward(exchange)
        if self._queue or not self._may_enter(kind):
            await self._wait(kind)
        else:
            self._in_flight[kind] += 1
        try:
            reply = await forward(exchange)
        except BaseException:
            self._leave(kind)
            raise
        reply.when_closed(lambda: self._leave(kind))
        return reply

    def _may_enter(self, kind: _Kind) -> bool:
        return not any(
            count and frozenset({kind, other}) in self._conflicts
            for other, count in self._in_flight.items()
        )

    async def _wait(self, kind: _Kind) -> None:
        """Enter in turn."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((kind, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._advance()
            else:  # it was let in just before
                self._leave(kind)
            raise

    def _leave(self, kind: _Kind) -> None:
        self._in_flight[kind] -= 1
        self._advance()

    def _advance(self) -> None:
        """Let in whatever may enter, in order."""
        while self._queue:
            kind, waiter = self._queue[0]
            if not waiter.cancelled():
                if not self._may_enter(kind):
                    return
                self._in_flight[kind] += 1
                waiter.set_result(None)
            self._queue.popleft()


class ExclusiveRequests(_KeptApart):
    """Layer: a request for which `is_exclusive` is true is in flight only when no other is."""

    def __init__(self, is_exclusive: Callable[[SampleRequest], bool]) -> None:
        alone = frozenset({_Kind.ALONE}), frozenset({_Kind.ALONE, _Kind.ANY})
        super().__init__(lambda request: _Kind.ALONE if is_exclusive(request) else _Kind.ANY, alone)


class SeparatedScores(_KeptApart):
    """Layer: requests for the scores of named tokens never meet those for the most likely ones.

    The former have `logprob_token_ids`. All others may be in flight beside both.
    """

    def __init__(self) -> None:
        super().__init__(_scores, [frozenset({_Kind.NAMED, _Kind.CANDIDATES})])


def _scores(request: SampleRequest) -> _Kind | None:
    if request.parameters.extra.get("logprob_token_ids"):
        return _Kind.NAMED
    return _Kind.CANDIDATES if request.parameters.logprobs else None
