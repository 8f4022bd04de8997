"""Whose turn it is: a fair queue between users, by virtual time."""

from __future__ import annotations

from collections.abc import Iterable


class FairTurns:
    """Gives each user an equal share of the compute, however much they ask for.

    Start-time fair queueing (Goyal, Vin, Cheng 1996) with equal weights: a user's clock advances by
    the cost of what is computed for them, and of the users with work the one whose clock is
    furthest behind is next. Who had nothing to do returns at the present time, the clock of the
    furthest behind, so idle time is not saved up. Hence a user who returns waits for at most one
    turn of each other user.
    """

    def __init__(self) -> None:
        self._clocks: dict[str, float] = {}
        self._working: frozenset[str] = frozenset()
        self._now = 0.0

    def choose(self, able: Iterable[str], *, working: Iterable[str] = ()) -> str | None:
        """The next of those who are able to use this turn; of equals the first. None if nobody is.

        `working` are all who have work, if some of them are not able to use this very turn: they
        keep their place.
        """
        able = list(able)
        everyone = frozenset(working).union(able)
        for user in everyone - self._working:
            self._clocks[user] = max(self._clocks.get(user, 0.0), self._now)
        self._working = everyone
        if everyone:
            self._now = max(self._now, min(self._clocks[user] for user in everyone))
        return min(able, key=lambda user: self._clocks[user], default=None)

    def charge(self, user: str, tokens: float) -> None:
        """Advance the clock of a user by the cost of what is computed for them."""
        self._clocks[user] = self._clocks.get(user, 0.0) + tokens
