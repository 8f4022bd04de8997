"""Virtual time."""

from __future__ import annotations

from collections import Counter

from enginehouse.tinker.fairness import FairTurns


def served(turns: FairTurns, costs: dict[str, float], *, times: int) -> list[str]:
    """Who is next, when all have work and each one's turns cost the same."""
    users = []
    for _ in range(times):
        user = turns.choose(costs)
        assert user is not None
        turns.charge(user, costs[user])
        users.append(user)
    return users


def test_users_get_equal_shares_of_the_compute():
    """Who asks for ten times as much per turn has a tenth of the turns."""
    counts = Counter(served(FairTurns(), {"greedy": 1000.0, "small": 100.0}, times=110))
    assert counts == {"greedy": 10, "small": 100}


def test_who_was_idle_has_saved_nothing_up():
    """A user who returns has no more turns than the one who was busy all the time."""
    turns = FairTurns()
    served(turns, {"busy": 10.0}, times=50)
    assert served(turns, {"busy": 10.0, "idle": 10.0}, times=6).count("idle") == 3


def test_who_was_busy_alone_owes_nothing():
    """Having used what nobody else wanted is not held against a user."""
    turns = FairTurns()
    served(turns, {"busy": 10.0}, times=50)
    served(turns, {"late": 10.0}, times=1)
    assert served(turns, {"late": 10.0, "busy": 10.0}, times=4).count("busy") == 2


def test_who_cannot_use_a_turn_keeps_their_place():
    """A user whose job does not fit is next as soon as it does."""
    turns = FairTurns()
    served(turns, {"a": 10.0, "b": 10.0}, times=2)
    for _ in range(3):
        assert turns.choose(["b"], working=["a", "b"]) == "b"
        turns.charge("b", 10.0)
    assert served(turns, {"a": 10.0, "b": 10.0}, times=3) == ["a", "a", "a"]


def test_nobody_is_chosen_where_nobody_has_work():
    """As when everything is done."""
    assert FairTurns().choose([]) is None
