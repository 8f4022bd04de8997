from __future__ import annotations

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.games.public_goods import PublicGoods
from enginehouse.games.registry import make_game

SEATS = ("ann", "ben", "cat", "dan")


def game(*, seats: tuple[str, ...] = SEATS, **settings: object) -> PublicGoods:
    """The game with these settings."""
    made = make_game("public_goods", settings, seats=seats)
    assert isinstance(made, PublicGoods)
    return made


def played(goods: PublicGoods, *rounds: str, seats: tuple[str, ...] = SEATS):
    """The state after rounds written as "20 20 0 5"."""
    state = goods.start(0)
    for given in rounds:
        state = goods.apply(state, dict(zip(seats, given.split(), strict=True)))
    return state


def test_what_is_given_grows_and_is_shared():
    """Everyone keeps the rest of the endowment and gets a quarter of 1.6 times the pot."""
    goods = game()
    state = played(goods, "20 20 20 0")
    share = 60 * 1.6 / 4
    expected = {"ann": share, "ben": share, "cat": share, "dan": 20 + share}
    assert goods.scores(state) == pytest.approx(expected)
    assert goods.welfare(state)[0] == pytest.approx(4 * 20 + 60 * 0.6)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 10 * 4 * 20 * 1.6),
        ({"num_rounds": 1, "factor": 3, "contributions": [0, 10]}, 4 * (20 + 10 * 2)),
        ({"num_rounds": 2, "factor": 0.5}, 2 * 4 * 20),
        ({"num_rounds": 2, "factor": 0.5, "contributions": [10, 20]}, 2 * 4 * 15),
    ],
)
def test_the_most_that_all_can_reach(settings, most):
    """Everything is given if the pot grows, as little as possible if it shrinks."""
    goods = game(**settings)
    assert goods.welfare(goods.start(0))[1] == pytest.approx(most)


def test_prompts_are_rendered_from_the_settings():
    """The rules name this game's numbers and players."""
    goods = game(seats=("x", "y"), num_rounds=7, endowment=8, factor=1.5, contributions=[1, 2.5, 8])
    rules = goods.rules()
    for words in (
        *("2 players (x, y)", "7 rounds", "gets 8 points", "multiplied by 1.5"),
        *("returns 0.75 points", "1, 2.5, 8"),
    ):
        assert words in rules
    state = goods.start(0)
    assert "Round 1 of 7. You are y" in goods.situation(state, "y")
    assert goods.decisions(state)["y"].options == ("1", "2.5", "8")


def test_everyone_learns_what_everyone_gave():
    """Contributions, points and scores of all, a text for each round."""
    goods = game()
    first, second = goods.history(played(goods, "20 0 0 0", "5 5 5 5"), "ben")
    assert "ann gave 20 and got 8 points, 8 in all" in first
    assert "ben gave 0 and got 28 points, 28 in all" in first
    assert "the pot of 20 became 32" in second
    assert "ann gave 5 and got 23 points, 31 in all" in second


def test_measures():
    """Shares of the endowment and of the rounds."""
    goods = game(num_rounds=2)
    measures = goods.measures(played(goods, "20 0 5 0", "10 0 0 5"))
    assert measures["ann"] == {"contribution": 0.75, "free_riding": 0}
    assert measures["ben"] == {"contribution": 0, "free_riding": 1}
    assert measures["cat"] == {"contribution": 0.125, "free_riding": 0.5}


def test_the_match_ends_after_the_last_round():
    """Then nobody decides."""
    goods = game(num_rounds=1)
    assert goods.decisions(played(goods, "0 0 0 0")) == {}
    with pytest.raises(ValueError, match="decide now"):
        played(goods, "0 0 0 0", "0 0 0 0")


@pytest.mark.parametrize("given", ["7", "-5", "20.0", "all"])
def test_an_amount_that_was_not_offered_is_refused(given):
    """Only the options count, spelled as they were offered."""
    with pytest.raises(ValueError, match="ann "):
        played(game(), f"{given} 0 0 0")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"contributions": [0, 30]}, "has 30"),
        ({"contributions": [5]}, "contributions"),
        ({"contributions": [-5, 5]}, "has -5"),
        ({"contributions": [5, 5.0]}, "twice"),
        ({"factor": 0}, "factor"),
        ({"endowmnt": 3}, "did you mean 'endowment'"),
    ],
)
def test_settings_that_do_not_fit(settings, named):
    """Refused before anything is started, naming the key."""
    with pytest.raises(ConfigurationError) as refused:
        game(**settings)
    assert named in str(refused.value)


@pytest.mark.parametrize("seats", [("a",), ("a", "a"), tuple("abcdefghijklmnopqrstuvwxyz")])
def test_seats_that_do_not_fit(seats):
    """Two to twenty different ones."""
    with pytest.raises(ConfigurationError):
        game(seats=seats)
