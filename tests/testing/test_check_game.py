"""The conformance suite of games, on games that keep their promises and on some that do not."""

# ruff: noqa: D102 - the methods are those of Game
from __future__ import annotations

import msgspec
import pytest

from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.games.base import Pick, UseTool
from enginehouse.games.red_black import RedBlack, RedBlackSettings
from enginehouse.testing.check_game import check_game

SEATS = ("team_a", "team_b")


class ChangesHistory(RedBlack):
    """Numbers the rounds from the end."""

    def history(self, state, seat):
        return tuple(reversed(super().history(state, seat)))


class Rounds(msgspec.Struct):
    """A state that can be changed."""

    rounds: list[tuple[str, str]]


class ChangesItsState(RedBlack):
    """Appends to a list within the state."""

    def start(self, seed):
        return Rounds([])

    def apply(self, state, actions):
        super().apply(super().start(0), actions)
        state.rounds.append((actions["team_a"], actions["team_b"]))
        return Rounds([*state.rounds])


class TakesAnything(RedBlack):
    """A word that was not offered counts as BLACK."""

    def apply(self, state, actions):
        known = {s: a if a in ("RED", "BLACK") else "BLACK" for s, a in actions.items()}
        return super().apply(state, known)


class OffersSentences(RedBlack):
    """An option of several words."""

    def decisions(self, state):
        return dict.fromkeys(super().decisions(state), Pick(options=("RED", "BLACK or not")))


class OffersNoWayOut(RedBlack):
    """A tool that cannot be called without arguments."""

    def decisions(self, state):
        needed = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
        tool = ToolDefinition(name="push", description="", parameters=needed)
        return dict.fromkeys(super().decisions(state), UseTool(tools=(tool,)))


class NeverEnds(RedBlack):
    """Goes on after the last round."""

    def decisions(self, state):
        return dict.fromkeys(SEATS, Pick(options=("RED", "BLACK")))


class HasAnotherMeasure(RedBlack):
    """Its measures are not those that it describes."""

    def measures(self, state):
        return {seat: {"luck": 1.0} for seat in SEATS}


class IsTooGood(RedBlack):
    """States a maximum below what was reached."""

    def welfare(self, state):
        return super().welfare(state)[0], -100.0


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (ChangesHistory, "history never changes"),
        (ChangesItsState, "apply leaves its state"),
        (TakesAnything, "refuses what was not offered"),
        (OffersSentences, "one word or number"),
        (OffersNoWayOut, "needs no arguments"),
        (NeverEnds, "a match ends"),
        (HasAnotherMeasure, "measures are those of info"),
        (IsTooGood, "largest total"),
    ],
)
def test_a_broken_promise_is_named(broken, promise, monkeypatch):
    """Each by its own words."""
    monkeypatch.setattr("enginehouse.testing.check_game.MOST_TURNS", 20)
    game = broken(RedBlackSettings(), seats=SEATS)
    with pytest.raises(AssertionError, match=promise):
        check_game(game, seats=SEATS, matches=20)
