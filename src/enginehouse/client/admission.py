"""Which requests may be in flight together, so that the one that kills an engine is found.

All of them may, until the engine dies. Then those that were in flight return one by one, with
nothing new in between. Whatever was present at two deaths is sent alone, and what kills the engine
alone is the killer. Where crowds keep dying without a killer among them, the crowds get smaller.

Where other instances answer alike, a call does not wait for this engine's next start: it leaves
with InstanceLostError. One that was lost from another instance once may be in flight with others
here, and after a second death it is sent alone like any other.
"""

from __future__ import annotations

import asyncio
from collections import deque

from enginehouse.client.exchange import Call, InstanceLostError

STAGGER = 0.5  # seconds at first, after which the next one returns though the last has not ended
_STEP = 4


class Admission:
    """Lets calls in and out. `limit` is None until crowds have died twice.

    Closed at first. Not thread-safe.
    """

    def __init__(self, *, stagger: float = STAGGER) -> None:
        self.in_flight: set[Call] = set()
        self.limit: int | None = None
        self.error: Exception | None = None  # why it will never open again
        self.is_open = False
        self._stagger = stagger
        self._suspects: _Queue = deque()
        self._isolated: _Queue = deque()
        self._fresh: _Queue = deque()
        self._returning: Call | None = None
        self._unexplained = 0

    async def enter(self, call: Call) -> None:
        """Wait until the call may be made. Raises what `close_for_good` was given.

        Raises InstanceLostError instead, and does not wait for an engine, if the call is movable.
        """
        if call.movable and not self.is_open:
            raise InstanceLostError
        if self.error is not None:
            raise self.error
        if not call.deaths and self._lets_in_freely():
            self.in_flight.add(call)
            return
        queue = (self._fresh, self._suspects, self._isolated)[min(call.deaths, 2)]
        if call.deaths == 1 and call.died_in not in (None, self):
            queue = self._fresh
        entry = (call, asyncio.get_running_loop().create_future())
        queue.append(entry)
        self._admit()
        try:
            await entry[1]
        except asyncio.CancelledError:
            if entry in queue:
                queue.remove(entry)
            self.leave(call)
            raise

    def leave(self, call: Call) -> None:
        """The call has ended, one way or another. Idempotent."""
        self.in_flight.discard(call)
        if call is self._returning:
            self._returning = None
        self._admit()

    def open(self) -> None:
        """The engine works (again)."""
        self.is_open = True
        self._admit()

    def close(self) -> list[Call]:
        """The engine is dead: let nothing in. Returns the calls that were present at its death."""
        self.is_open = False
        lost = list(self.in_flight)
        if len(lost) > 1 and all(call.deaths for call in lost):
            self._stagger *= _STEP  # they returned too fast to be told apart
        elif len(lost) > 1:
            self._unexplained += 1
            if self._unexplained > 1:
                self.limit = max(1, len(lost) // _STEP)
        for call in lost:
            call.deaths += 1
            call.died_in = self
        self._dismiss()
        return lost

    def explain(self) -> None:
        """A killer was found: it explains one death of a crowd."""
        self._unexplained = max(0, self._unexplained - 1)

    def close_for_good(self, error: Exception) -> None:
        """Raise `error` in every call that waits, now or later."""
        self.is_open = False
        self.error = error
        self._dismiss()

    def _dismiss(self) -> None:
        """Send away the calls that another instance can take, or all once there is an `error`."""
        for queue in (self._suspects, self._isolated, self._fresh):
            waiting = list(queue)
            queue.clear()
            for entry in waiting:
                call, waiter = entry
                error = InstanceLostError() if call.movable else self.error
                if error is None:
                    queue.append(entry)
                elif not waiter.done():
                    waiter.set_exception(error)

    def _admit(self) -> None:
        while self.is_open and self._returning is None:
            if len(self.in_flight) == 1 and next(iter(self.in_flight)).alone:
                return
            if self._suspects:
                self._returning = self._let_in(self._suspects)
                loop = asyncio.get_running_loop()
                loop.call_later(self._stagger, self._next_suspect, self._returning)
            elif self._isolated:
                if self.in_flight:
                    return
                self._let_in(self._isolated).alone = True
            elif self._fresh and (self.limit is None or len(self.in_flight) < self.limit):
                self._let_in(self._fresh)
            else:
                return

    def _lets_in_freely(self) -> bool:
        """Whether nobody waits, and another call may be in flight, so that there is no queue."""
        return (
            self.is_open
            and self._returning is None
            and not (self._fresh or self._suspects or self._isolated)
            and (self.limit is None or len(self.in_flight) < self.limit)
            and not (len(self.in_flight) == 1 and next(iter(self.in_flight)).alone)
        )

    def _next_suspect(self, last: Call) -> None:
        if last is self._returning:
            self._returning = None
            self._admit()

    def _let_in(self, queue: _Queue) -> Call:
        call, waiter = queue.popleft()
        self.in_flight.add(call)
        call.alone = False
        if not waiter.done():
            waiter.set_result(None)
        return call


_Queue = deque[tuple[Call, asyncio.Future[None]]]
