"""Assigns a few places to many residents; one in use keeps its place. Single-threaded, no I/O."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

PATIENCE = 5.0  # seconds for which places in permanent use may keep others waiting


class State(Enum):
    """Where a resident is; all but OUT occupy a place."""

    OUT = "out"
    COMING = "coming"
    IN = "in"
    GOING = "going"


@dataclass(eq=False)
class Resident:
    """One that may have a place. `held` counts its users; a `retired` one goes when it is idle.

    Those of different owners come in turns.
    """

    owner: str = ""
    state: State = State.OUT
    held: int = 0
    retired: bool = False
    closing: bool = False  # accepts no new users, because others have waited too long
    used: int = 0
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    gone: asyncio.Future[None] | None = None


R = TypeVar("R", bound=Resident)


class Residence(Generic[R]):
    """Manages `places`: one that is asked for comes in, the least recently used idle one goes.

    `come` and `go` do the work, each in its own task, so that a caller who gives up does not affect
    others. Residents come in the order in which they were asked for, but those of several owners in
    turns, so that nobody waits until all of somebody else's have been in. If none becomes idle for
    `patience` seconds, the one that has been in longest accepts no new users, and goes once it is
    idle.
    """

    def __init__(
        self,
        places: int,
        *,
        come: Callable[[R], Awaitable[None]],
        go: Callable[[R], Awaitable[None]],
        patience: float = PATIENCE,
    ) -> None:
        self._places = places
        self._patience = patience
        self._come = come
        self._go = go
        self._inside: list[R] = []  # longest in first
        self._queue: deque[R] = deque()
        self._turns = itertools.count(1)
        self._served: dict[str, int] = {}  # the last turn of each owner
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def inside(self) -> tuple[R, ...]:
        """Those that are in, and neither coming nor going."""
        return tuple(one for one in self._inside if one.state is State.IN)

    @asynccontextmanager
    async def hold(self, one: R) -> AsyncIterator[None]:
        """Keep it in for the length of the block. Raises what `come` raises."""
        if one.state is State.IN and not one.closing:
            one.held += 1
        else:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            one.waiting.append(future)
            if one not in self._queue and one.state is not State.COMING:
                self._queue.append(one)
            self._advance()
            try:
                await future
            except asyncio.CancelledError:
                if future in one.waiting:
                    one.waiting.remove(future)
                    self._tell_gone(one)
                    self._advance()
                elif not future.cancelled() and future.exception() is None:
                    self._release(one)  # it had just been let in
                raise
        try:
            yield
        finally:
            self._release(one)

    def _release(self, one: R) -> None:
        one.held -= 1
        one.used = next(self._turns)
        self._advance()

    def retire(self, one: R) -> None:
        """Let it go as soon as it has no users, present or waiting."""
        one.retired = True
        self._advance()

    def keep(self, one: R) -> None:
        """Revoke `retire`."""
        one.retired = False
        if one.gone is not None:
            one.gone.set_result(None)
            one.gone = None

    async def leave(self, one: R) -> None:
        """Retire it, and wait until it is out without waiting users, or until it is kept.

        Raises what `go` raises.
        """
        if one.state is State.OUT and not one.waiting:
            return
        if one.gone is None:
            one.gone = asyncio.get_running_loop().create_future()
        gone = one.gone
        self.retire(one)
        await asyncio.shield(gone)

    def _advance(self) -> None:
        """Start everything that can be started now."""
        self._queue = deque(one for one in self._queue if one.waiting)
        wanted = [one for one in self._queue if one.state is State.OUT]
        if not wanted:  # nobody needs a place, so all that are in accept users again
            for one in self.inside:
                one.closing = False
                if one in self._queue:
                    self._queue.remove(one)
                self._let_in(one)
        free = self._places - len(self._inside)
        for one in self._in_turns(wanted)[: max(0, free)]:
            self._queue.remove(one)
            self._served[one.owner] = next(self._turns)
            self._inside.append(one)
            self._start(one, State.COMING, self._coming(one))
        # The retired ones go, and as many idle ones as places are needed.
        needed = len(wanted) - free - sum(one.state is State.GOING for one in self._inside)
        idle = [one for one in self.inside if not one.held]
        for one in sorted(idle, key=lambda one: (not one.closing, one.used)):
            if needed > 0 or (one.retired and not one.waiting):
                needed -= 1
                self._start(one, State.GOING, self._going(one))
        if needed <= 0 and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif needed > 0 and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._patience, self._lose_patience)

    def _in_turns(self, wanted: list[R]) -> list[R]:
        """The first one of each owner, longest without a turn first; then the second ones."""
        counts: Counter[str] = Counter()
        order: dict[R, tuple[int, int]] = {}
        for one in wanted:
            order[one] = (counts[one.owner], self._served.get(one.owner, 0))
            counts[one.owner] += 1
        return sorted(wanted, key=order.__getitem__)

    def _lose_patience(self) -> None:
        self._timer = None
        if one := next((one for one in self.inside if not one.closing), None):
            one.closing = True
        self._advance()

    def _let_in(self, one: R) -> None:
        waiting, one.waiting = one.waiting, []
        for future in waiting:
            if not future.done():
                one.held += 1
                future.set_result(None)

    def _start(self, one: R, state: State, coroutine: Coroutine[Any, Any, None]) -> None:
        one.state = state
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _coming(self, one: R) -> None:
        try:
            await self._come(one)
        except asyncio.CancelledError:
            self._out(one)
            for future in one.waiting:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised by everyone who waits for it
            self._out(one)
            waiting, one.waiting = one.waiting, []
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
            self._tell_gone(one)
        else:
            one.state = State.IN
            one.used = next(self._turns)
            self._let_in(one)
        self._advance()

    async def _going(self, one: R) -> None:
        error: Exception | None = None
        try:
            await self._go(one)
        except Exception as failure:  # noqa: BLE001 - raised by those who wait for it
            error = failure
        finally:
            self._out(one)
            self._tell_gone(one, error)
        self._advance()

    def _tell_gone(self, one: R, error: Exception | None = None) -> None:
        """Wake those who wait until it is out, unless it comes back at once."""
        if one.gone is None or one.state is not State.OUT or (one.waiting and error is None):
            return
        gone, one.gone = one.gone, None
        if error is None:
            gone.set_result(None)
        else:
            gone.set_exception(error)
            gone.exception()  # marks it as retrieved: the waiter may have given up

    def _out(self, one: R) -> None:
        one.state = State.OUT
        one.closing = False
        self._inside.remove(one)
