"""Which requests may be under way together, so that the one that kills an engine is found.

Everything may, until the engine dies. Then what it took with it returns one by one, and nothing new
comes in between. Whatever is present at a second death is asked alone, and one that kills the
engine alone is the killer. Where crowds keep dying without a killer among them, they get smaller.
"""

from __future__ import annotations

import asyncio
from collections import deque

STAGGER = 0.5  # seconds at first, after which the next one returns though the last has not ended
_STEP = 4


class Call:
    """One request under way. `deaths` counts the engine's deaths at which it was present."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.deaths = 0
        self.alone = False
        self.lost = False


class Admission:
    """Lets calls in, and out; single-threaded. `limit` is None until crowds have died twice."""

    def __init__(self, *, stagger: float = STAGGER) -> None:
        self.under_way: set[Call] = set()
        self.limit: int | None = None
        self._stagger = stagger
        self._open = False
        self._error: Exception | None = None
        self._waiting: dict[str, deque[tuple[Call, asyncio.Future[None]]]] = {
            "suspect": deque(),
            "isolated": deque(),
            "fresh": deque(),
        }
        self._returned: Call | None = None
        self._unexplained = 0

    async def enter(self, call: Call) -> None:
        """Wait until the call may be made. Raises what `close_for_good` was given."""
        if self._error is not None:
            raise self._error
        future = asyncio.get_running_loop().create_future()
        kind = ("fresh", "suspect")[call.deaths] if call.deaths < 2 else "isolated"
        entry = (call, future)
        self._waiting[kind].append(entry)
        self._admit()
        try:
            await future
        except asyncio.CancelledError:
            if entry in self._waiting[kind]:
                self._waiting[kind].remove(entry)
            self.leave(call)
            raise

    def leave(self, call: Call) -> None:
        """The call has ended, well or not. Idempotent."""
        self.under_way.discard(call)
        if call is self._returned:
            self._returned = None
        self._admit()

    def open(self) -> None:
        """The engine works (again)."""
        self._open = True
        self._admit()

    def close(self) -> list[Call]:
        """The engine is dead: nothing gets in; what was under way has been present at a death."""
        self._open = False
        lost = list(self.under_way)
        if len(lost) > 1 and all(call.deaths for call in lost):
            self._stagger *= _STEP  # they returned too fast to be told apart
        elif len(lost) > 1:
            self._unexplained += 1
            if self._unexplained > 1:
                self.limit = max(1, len(lost) // _STEP)
        for call in lost:
            call.deaths += 1
            call.lost = True
        return lost

    def explain(self) -> None:
        """A killer was found: it explains one death of a crowd."""
        self._unexplained = max(0, self._unexplained - 1)

    def close_for_good(self, error: Exception) -> None:
        """Whoever waits, now or later, gets `error`."""
        self._open = False
        self._error = error
        for queue in self._waiting.values():
            while queue:
                _, future = queue.popleft()
                if not future.done():
                    future.set_exception(error)

    def _is_somebody_alone(self) -> bool:
        return len(self.under_way) == 1 and next(iter(self.under_way)).alone

    def _has_room(self) -> bool:
        return self.limit is None or len(self.under_way) < self.limit

    def _admit(self) -> None:
        suspects, isolated, fresh = self._waiting.values()
        while self._open and self._returned is None and not self._is_somebody_alone():
            if suspects:
                self._returned = self._let_in(suspects)
                loop = asyncio.get_running_loop()
                loop.call_later(self._stagger, self._next_suspect, self._returned)
            elif isolated:
                if self.under_way:
                    return
                self._let_in(isolated).alone = True
            elif fresh and self._has_room():
                self._let_in(fresh)
            else:
                return

    def _next_suspect(self, last: Call) -> None:
        if last is self._returned:
            self._returned = None
            self._admit()

    def _let_in(self, queue: deque[tuple[Call, asyncio.Future[None]]]) -> Call:
        call, future = queue.popleft()
        self.under_way.add(call)
        call.alone = False
        if not future.done():
            future.set_result(None)
        return call
