"""Sessions live as long as they are heard of."""

from __future__ import annotations

import pytest

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.heartbeats import Heartbeats


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.now


def test_a_session_lapses_without_heartbeats_and_only_then():
    """A lapsed session is handed out once."""
    clock = Clock()
    heartbeats = Heartbeats(timeout=30, clock=clock)
    silent = heartbeats.begin("ses-a", user="ada")
    heard = heartbeats.begin("ses-b", user="bob")
    clock.now = 29
    heartbeats.beat(heard)
    clock.now = 31
    assert list(heartbeats.alive()) == [heard]
    assert heartbeats.take_lapsed() == ["ses-a"]
    assert heartbeats.take_lapsed() == []
    assert heartbeats.find("ses-a", user="ada") is None
    assert silent.last_heard == 0
    assert heartbeats.received == 1


def test_a_finished_session_gets_410():
    """Which stops the SDK's heartbeats."""
    heartbeats = Heartbeats(timeout=30)
    session = heartbeats.begin("ses-a", user="ada")
    heartbeats.finish(session)
    with pytest.raises(TinkerError, match="has finished") as refused:
        heartbeats.beat(session)
    assert refused.value.status == 410
    assert list(heartbeats.alive()) == []


def test_another_users_session_is_unknown():
    """As if it did not exist."""
    heartbeats = Heartbeats(timeout=30)
    heartbeats.begin("ses-a", user="ada")
    assert heartbeats.find("ses-a", user="eve") is None
