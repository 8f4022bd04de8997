"""Places for the work of several users that share one engine, given out fairly."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from enginehouse.tinker.fairness import FairTurns


class Load(NamedTuple):
    """How many pieces of a user's work run, and how many wait."""

    running: int
    waiting: int


@dataclass(eq=False)
class _Waiter:
    cost: float
    turn: asyncio.Future[None]


@dataclass(eq=False)
class _Share:
    running: int = 0
    waiting: deque[_Waiter] = field(default_factory=deque)


class FairSlots:
    """At most `total` pieces of work at the same time, and at most `per_user` of one user.

    Who gets the next free place is decided by FairTurns: of the users that wait and may have
    another place, the one who was given least so far.
    """

    def __init__(self, *, total: int, per_user: int) -> None:
        self._total = total
        self._per_user = per_user
        self._running = 0
        self._turns = FairTurns()
        self._shares: dict[str, _Share] = {}

    @asynccontextmanager
    async def slot(self, user: str, *, cost: float) -> AsyncIterator[None]:
        """Wait for a place and hold it for the block. `cost` is in tokens, prompt and answer."""
        share = self._shares.setdefault(user, _Share())
        waiter = _Waiter(cost, asyncio.get_running_loop().create_future())
        share.waiting.append(waiter)
        self._give_out()
        try:
            await waiter.turn
            yield
        finally:
            if waiter.turn.done() and not waiter.turn.cancelled():
                share.running -= 1
                self._running -= 1
            elif waiter in share.waiting:
                share.waiting.remove(waiter)
            if not share.running and not share.waiting and self._shares.get(user) is share:
                del self._shares[user]
            self._give_out()

    def why_wait(self, user: str) -> str | None:
        """Why a new piece of work of the user would wait; None if it would not."""
        share = self._shares.get(user, _Share())
        if share.running >= self._per_user:
            return f"you have {share.running} samples in flight, the most one user may have"
        if self._running >= self._total:
            return f"all {self._total} places of the sampling engine are taken; users take turns"
        return None

    def load(self) -> dict[str, Load]:
        """How much of each user runs and waits, for those of whom anything does."""
        return {
            user: Load(share.running, len(share.waiting)) for user, share in self._shares.items()
        }

    def _give_out(self) -> None:
        while self._running < self._total:
            user = self._turns.choose(
                user
                for user, share in self._shares.items()
                if share.waiting and share.running < self._per_user
            )
            if user is None:
                return
            share = self._shares[user]
            waiter = share.waiting.popleft()
            if waiter.turn.cancelled():  # its task has not noticed yet
                continue
            self._turns.charge(user, waiter.cost)
            share.running += 1
            self._running += 1
            waiter.turn.set_result(None)
