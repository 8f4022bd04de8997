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
    """How many places a user's work has, and how many pieces of it wait."""

    running: int
    waiting: int


@dataclass(eq=False)
class _Waiter:
    cost: float
    places: int
    turn: asyncio.Future[None]


@dataclass(eq=False)
class _Share:
    running: int = 0
    waiting: deque[_Waiter] = field(default_factory=deque)


class FairSlots:
    """At most `total` places are taken at the same time, and at most `per_user` by one user.

    Who gets the next free places is decided by FairTurns: of the users that wait and may have more,
    the one who was given least so far, who is waited for if too few are free.
    """

    def __init__(self, *, total: int, per_user: int) -> None:
        self._total = total
        self._per_user = per_user
        self._running = 0
        self._turns = FairTurns()
        self._shares: dict[str, _Share] = {}

    @property
    def share(self) -> int:
        """The most places that one user, and so one piece of work, may have."""
        return min(self._per_user, self._total)

    @asynccontextmanager
    async def slot(self, user: str, *, cost: float, places: int = 1) -> AsyncIterator[None]:
        """Wait for places and hold them for the block; no more than a user's share.

        `cost` is in tokens, prompt and answer.
        """
        share = self._shares.setdefault(user, _Share())
        places = min(places, self.share)
        waiter = _Waiter(cost, places, asyncio.get_running_loop().create_future())
        share.waiting.append(waiter)
        self._give_out()
        try:
            await waiter.turn
            yield
        finally:
            if waiter.turn.done() and not waiter.turn.cancelled():
                share.running -= places
                self._running -= places
            elif waiter in share.waiting:
                share.waiting.remove(waiter)
            if not share.running and not share.waiting and self._shares.get(user) is share:
                del self._shares[user]
            self._give_out()

    def charge(self, user: str, cost: float) -> None:
        """Count what a piece of work cost more, or less, than was said before."""
        self._turns.charge(user, cost)

    def why_wait(self, user: str, *, places: int = 1) -> str | None:
        """Why a new piece of work of the user would wait; None if it would not."""
        running = self._shares.get(user, _Share()).running
        places = min(places, self.share)
        if running + places > self._per_user:
            return (
                f"{running} samples of yours are in flight, and {self._per_user} are the most of "
                "one user"
            )
        if self._running + places > self._total:
            return f"the {self._total} places of the sampling engine are taken; users take turns"
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
                if share.waiting and share.running + share.waiting[0].places <= self._per_user
            )
            if user is None:
                return
            share = self._shares[user]
            waiter = share.waiting[0]
            if waiter.turn.cancelled():  # its task has not noticed yet
                share.waiting.popleft()
                continue
            if self._running + waiter.places > self._total:
                return
            share.waiting.popleft()
            self._turns.charge(user, waiter.cost)
            share.running += waiter.places
            self._running += waiter.places
            waiter.turn.set_result(None)
