from __future__ import annotations

import math

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.games.red_black import BLACK, RED, RedBlack
from enginehouse.games.registry import make_game

SEATS = ("team_a", "team_b")


def game(**settings: object) -> RedBlack:
    """The game with these settings."""
    made = make_game("red_black", settings, seats=SEATS)
    assert isinstance(made, RedBlack)
    return made


def played(red_black: RedBlack, *choices: str):
    """The state after rounds written as "RB": the first seat chose RED, the second BLACK."""
    words = {"R": RED, "B": BLACK}
    state = red_black.start(0)
    for first, second in choices:
        state = red_black.apply(state, {"team_a": words[first], "team_b": words[second]})
    return state


@pytest.mark.parametrize(
    ("choices", "first", "second"),
    [("BB", 3, 3), ("RR", -3, -3), ("RB", 6, -6), ("BR", -6, 6)],
)
def test_the_original_pay_offs(choices, first, second):
    """Both cooperate, both defect, one exploits the other."""
    red_black = game()
    assert red_black.scores(played(red_black, choices)) == {"team_a": first, "team_b": second}


def test_multipliers_count_in_their_round_only():
    """Round 2 counts five times."""
    red_black = game(num_rounds=3, multipliers={2: 5})
    state = played(red_black, "BB", "RB", "RR")
    assert red_black.scores(state) == {"team_a": 3 + 30 - 3, "team_b": 3 - 30 - 3}


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 150),
        ({"num_rounds": 10, "multipliers": {5: 2, 10: 3}}, 78),
        ({"num_rounds": 3, "multipliers": {3: 2}}, 24),
        ({"num_rounds": 3}, 18),
        ({"multipliers": {}}, 60),
        ({"num_rounds": 2, "multipliers": {}, "payoffs": {"red_against_black": 20}}, 28),
    ],
)
def test_the_maximum_total_follows_from_the_settings(settings, most):
    """The original's configurations, and pay-offs where exploitation has the highest total."""
    red_black = game(**settings)
    assert red_black.welfare(red_black.start(0)) == (0, most)
    assert f"reached in this game is {most}" in red_black.rules()


def test_prompts_state_the_configured_multipliers():
    """Other multipliers, other prompts: none of the defaults is left in the text."""
    red_black = game(num_rounds=6, multipliers={2: 7, 4: 1.5})
    rules = red_black.rules()
    assert "Round 2: all points count x7" in rules
    assert "Round 4: all points count x1.5" in rules
    assert "Round 5" not in rules
    assert "6 rounds" in rules
    states = [played(red_black, *["BB"] * rounds) for rounds in range(6)]
    factors = ["x1", "x7", "x1", "x1.5", "x1", "x1"]
    for state, factor in zip(states, factors, strict=True):
        assert f"points count {factor}." in red_black.situation(state, "team_a")
    texts = red_black.history(states[5], "team_a")
    assert all(f"count {factor})" in text for factor, text in zip(factors, texts, strict=False))


def test_prompts_state_the_configured_pay_offs():
    """The rules are rendered from the same numbers that score."""
    payoffs = {"both_black": 4, "both_red": -1, "red_against_black": 9, "black_against_red": -8}
    rules = game(payoffs=payoffs).rules()
    for points in ("+4 for each", "-1 for each", "+9 for the team", "-8 for the team"):
        assert points in rules


def test_rules_without_multipliers_mention_none():
    """Neither {} nor a factor of 1 is worth a line."""
    for multipliers in ({}, {3: 1}):
        rules = game(multipliers=multipliers).rules()
        assert "Every round counts the same." in rules
        assert "Round 3" not in rules


def test_history_tells_both_seats_the_same():
    """Choices, points and running totals, a text for each round."""
    red_black = game(num_rounds=3, multipliers={2: 2})
    state = played(red_black, "RB", "BB")
    first, second = red_black.history(state, "team_a")
    assert red_black.history(state, "team_b") == (first, second)
    assert "team_a chose RED (+6 points), team_b chose BLACK (-6 points)" in first
    assert "Points so far: team_a 12, team_b 0." in second


def test_the_situation_is_told_from_the_seat():
    """Its own points come first."""
    red_black = game()
    state = played(red_black, "RB")
    assert "your team (team_b) -6, the other team (team_a) 6" in red_black.situation(
        state, "team_b"
    )
    assert "total 0 of at most 150" in red_black.situation(state, "team_b")


def test_the_match_ends_after_the_last_round():
    """Then nobody decides, and nothing can be applied."""
    red_black = game(num_rounds=2, multipliers={})
    state = played(red_black, "BB", "BB")
    assert red_black.decisions(state) == {}
    with pytest.raises(ValueError, match="decide now"):
        played(red_black, "BB", "BB", "BB")


def test_measures():
    """Rates are shares of all rounds; the first defection is a round's number, or missing."""
    red_black = game(num_rounds=4, multipliers={})
    measures = red_black.measures(played(red_black, "BB", "BR", "BR", "BR"))
    assert measures["team_a"] == {
        "cooperation": 1,
        "exploitation_given": 0,
        "exploitation_suffered": 0.75,
        "first_defection": None,
    }
    assert measures["team_b"] == {
        "cooperation": 0.25,
        "exploitation_given": 0.75,
        "exploitation_suffered": 0,
        "first_defection": 2,
    }


def test_an_invalid_action_is_refused():
    """Another word, another spelling, a missing or an unknown seat."""
    red_black = game()
    state = red_black.start(0)
    for actions in (
        {"team_a": "GREEN", "team_b": RED},
        {"team_a": "red", "team_b": RED},
        {"team_a": RED},
        {"team_a": RED, "team_b": RED, "team_c": RED},
    ):
        with pytest.raises(ValueError, match=r"not RED|decide now"):
            red_black.apply(state, actions)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_rounds": 10, "multipliers": {11: 2}}, "round 11"),
        ({"multipliers": {0: 2}}, "round 0"),
        ({"multipliers": {5: 0}}, "multipliers.5"),
        ({"multipliers": {5: -3}}, "multipliers.5"),
        ({"multipliers": {5: math.inf}}, "multipliers.5"),
        ({"num_rounds": 0}, "num_rounds"),
        ({"num_rouds": 10}, "did you mean 'num_rounds'"),
        ({"payoffs": {"both_blak": 1}}, "did you mean 'both_black'"),
    ],
)
def test_settings_that_do_not_fit(settings, named):
    """Refused before anything is started, naming the key."""
    with pytest.raises(ConfigurationError) as refused:
        game(**settings)
    assert named in str(refused.value)


@pytest.mark.parametrize("seats", [(), ("a",), ("a", "a"), ("a", "b", "c")])
def test_seats_that_do_not_fit(seats):
    """There are two teams."""
    with pytest.raises(ConfigurationError):
        make_game("red_black", {}, seats=seats)
