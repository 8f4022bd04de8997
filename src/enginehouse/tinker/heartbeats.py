"""Which sessions are alive. Kept in memory, so that a heartbeat never waits for the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from enginehouse.core.errors import TinkerError


@dataclass(eq=False)
class LiveSession:
    """A session that was heard of since the service started; `last_heard` is of the clock."""

    session_id: str
    user: str
    last_heard: float
    finished: bool = False


class Heartbeats:
    """The sessions by id. One that says nothing for `timeout` seconds has lapsed.

    A lapsed session that is heard of again is alive again; a finished one never is.
    """

    def __init__(self, *, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout = timeout
        self._clock = clock
        self._sessions: dict[str, LiveSession] = {}
        self.received = 0
        """How many heartbeats there were."""

    def begin(self, session_id: str, *, user: str, finished: bool = False) -> LiveSession:
        """Take a session that was just made, or one that the records know from before."""
        session = LiveSession(session_id, user, self._clock(), finished)
        return self._sessions.setdefault(session_id, session)

    def find(self, session_id: str, *, user: str) -> LiveSession | None:
        """The user's session, if it was heard of; another user's is as unknown as any."""
        session = self._sessions.get(session_id)
        return session if session is not None and session.user == user else None

    def beat(self, session: LiveSession) -> None:
        """Note a sign of life. Raises TinkerError (410) for a finished session."""
        if session.finished:
            raise TinkerError(
                f"the session {session.session_id} has finished",
                fix="make a new ServiceClient",
                status=410,
            )
        session.last_heard = self._clock()
        self.received += 1

    def finish(self, session: LiveSession) -> None:
        """End a session. Idempotent."""
        session.finished = True

    def alive(self) -> Iterator[LiveSession]:
        """The sessions that are neither finished nor lapsed."""
        for session in self._sessions.values():
            if not session.finished and not self._lapsed(session):
                yield session

    def take_lapsed(self) -> list[str]:
        """The ids of sessions that have lapsed, or finished that long ago; forgets them."""
        lapsed = [name for name, session in self._sessions.items() if self._lapsed(session)]
        for session_id in lapsed:
            del self._sessions[session_id]
        return lapsed

    def _lapsed(self, session: LiveSession) -> bool:
        return self._clock() - session.last_heard > self._timeout
