"""How long the rest of a run will take."""

from __future__ import annotations

from collections import deque
from typing import Final

_ENOUGH: Final = 10  # answered requests, for a first estimate


class RemainingTime:
    """An estimate by requests, which progresses while samples of several requests are still open.

    Requests in flight count as half done: otherwise the time that the first answers took would be
    expected over and over. There may be more of them than the server works on, so they never count
    for more than the answered ones.
    """

    def __init__(self, requests: int) -> None:
        """`requests` are expected in all."""
        self._expected = requests
        self._in_flight = 0
        self._finished = 0
        self._history: deque[tuple[float, int]] = deque()  # elapsed seconds, complete requests

    def begin(self, requests: int) -> None:
        """A sample that takes so many requests is in flight."""
        self._in_flight += requests

    def finish(self, requests: int) -> None:
        """That sample has been answered or has failed."""
        self._in_flight -= requests
        self._finished += requests

    def seconds(self, *, answered: int, elapsed: float) -> float | None:
        """The estimate after `elapsed` seconds, or None while too little has been answered.

        `answered` counts all answered requests, also those of samples in flight.
        """
        early = min(max(answered - self._finished, 0), self._in_flight)
        complete = self._finished + early
        if complete < min(_ENOUGH, self._expected / 10) or not complete:
            return None
        done = complete + min((self._in_flight - early) / 2, complete)
        left = max(self._expected - done, 0)
        self._history.append((elapsed, complete))
        while self._history[0][0] < elapsed / 2:
            self._history.popleft()
        since, before = self._history[0]
        recent = (elapsed - since) / (complete - before) if complete > before else 0.0
        return left * max(elapsed / done, recent)
