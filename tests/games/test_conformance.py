"""Every game keeps the promises of `Game`, in any number of seats and with any settings."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.games.registry import GAMES, make_game
from enginehouse.testing.check_game import check_game, random_action

NAMES = tuple(f"seat_{n}" for n in range(20))
SETTINGS = {
    "red_black": st.fixed_dictionaries(
        {"num_rounds": st.integers(1, 12)},
        optional={
            "multipliers": st.dictionaries(st.just(1), st.floats(0.5, 20)),
            "payoffs": st.fixed_dictionaries(
                {
                    name: st.integers(-10, 10)
                    for name in ("both_black", "both_red", "red_against_black", "black_against_red")
                }
            ),
        },
    ),
    "public_goods": st.fixed_dictionaries(
        {
            "num_rounds": st.integers(1, 6),
            "factor": st.floats(0.1, 5),
            "contributions": st.lists(st.integers(0, 20), min_size=2, max_size=6, unique=True),
        }
    ),
    "foraging": st.fixed_dictionaries(
        {"num_turns": st.integers(1, 6), "fires": st.integers(0, 20), "step": st.floats(0.5, 9)},
        optional={"recipes": st.just({})},
    ),
}


def test_every_game_is_tested():
    """A game that is added needs a strategy for its settings."""
    assert SETTINGS.keys() == set(GAMES.names())


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES.names())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_promises_hold_for_any_settings(name, data):
    """A few random matches with random settings and seats."""
    info = GAMES.load(name).info
    seats = NAMES[: data.draw(st.integers(info.least_seats, min(info.most_seats, 5)))]
    game = make_game(name, data.draw(SETTINGS[name]), seats=seats)
    check_game(game, seats=seats, matches=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES.names())
def test_a_thousand_random_matches(name):
    """To the end; the same seed gives the same scores."""
    info = GAMES.load(name).info
    seats = NAMES[: max(2, info.least_seats)]
    shorter = {"num_turns": 10} if name == "foraging" else {}  # checking arguments takes time
    game = make_game(name, shorter, seats=seats)
    scores = [_played(game, seed) for seed in range(1000)]
    assert [_played(game, seed) for seed in range(20)] == scores[:20]
    assert len({tuple(score.values()) for score in scores}) > 5


def _played(game, seed: int):
    """The scores of a random match."""
    numbers = random.Random(seed)
    state = game.start(seed)
    while decisions := game.decisions(state):
        actions = {
            seat: random_action(decision, numbers, words=game.situation(state, seat))
            for seat, decision in decisions.items()
        }
        state = game.apply(state, actions)
    return game.scores(state)
