from __future__ import annotations

import pytest

from enginehouse.core.errors import UnknownNameError
from enginehouse.games.red_black import RedBlack
from enginehouse.games.registry import GAMES, list_games, make_game, problem_of


def test_every_registered_game_describes_itself():
    """Its name is the registered one, and what a list shows is there."""
    assert [info.name for info in list_games()] == list(GAMES.names())
    for info in list_games():
        assert info.version >= 1
        assert info.description
        assert 1 <= info.least_seats <= info.most_seats
        assert all(measure.description for measure in info.measures)


def test_an_unknown_game_names_the_nearest():
    """A misspelt name is refused at once."""
    with pytest.raises(UnknownNameError, match="'red_black'"):
        make_game("redblack", {}, seats=("a", "b"))


def test_what_a_plug_in_lacks_is_listed():
    """A method, a part of its description, or its own name."""

    class Forgetful(RedBlack):
        welfare = None
        Settings = None

    assert problem_of("red_black", Forgetful) == "lacks: Settings, welfare"
    assert problem_of("red_black", RedBlack) is None
    assert "red_black" in (problem_of("black_red", RedBlack) or "")
