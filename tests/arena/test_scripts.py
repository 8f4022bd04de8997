"""Agents that follow a script."""

from __future__ import annotations

import pytest

from enginehouse.arena.scripts import Position, make_script
from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.games.base import Pick, ToolAction, UseTool

CHOICE = Pick(options=("RED", "BLACK"))
IDLE = ToolDefinition(name="idle", description="", parameters={"type": "object", "properties": {}})
MOVE = ToolDefinition(
    name="move",
    description="",
    parameters={"type": "object", "properties": {"to": {}}, "required": ["to"]},
)
ROUNDS = ({"a": "RED", "b": "BLACK"}, {"a": "BLACK", "b": "RED"})


def at(decision, *, past=(), seed=0):
    """What seat a has to decide."""
    return Position(seat="a", decision=decision, past=past, seed=str(seed))


def test_always():
    """The same option, or tool, in every turn."""
    assert make_script("always RED")(at(CHOICE)) == "RED"
    assert make_script("always BLACK")(at(CHOICE, past=ROUNDS)) == "BLACK"
    assert make_script("always idle")(at(UseTool(tools=(MOVE, IDLE)))) == ToolAction("idle", {})


@pytest.mark.parametrize("name", ["always GREEN", "always", "alwaysRED"])
def test_what_is_not_offered(name):
    """The known options or scripts are listed."""
    with pytest.raises(UnknownNameError):
        make_script(name)(at(CHOICE))


def test_a_tool_with_arguments_is_not_for_scripts():
    """They have none to give."""
    with pytest.raises(UnknownNameError):
        make_script("always move")(at(UseTool(tools=(MOVE, IDLE))))


def test_tit_for_tat():
    """It begins with BLACK and then does what the other team did."""
    script = make_script("tit for tat")
    assert script(at(CHOICE)) == "BLACK"
    assert script(at(CHOICE, past=ROUNDS[:1])) == "BLACK"
    assert script(at(CHOICE, past=ROUNDS)) == "RED"


def test_tit_for_tat_needs_one_opponent():
    """With two there is nothing to pay back."""
    past = ({"a": "RED", "b": "RED", "c": "RED"},)
    with pytest.raises(ConfigurationError):
        make_script("tit for tat")(at(CHOICE, past=past))
    with pytest.raises(UnknownNameError):
        make_script("tit for tat")(at(Pick(options=("1", "2"))))


def test_random_is_seeded():
    """The same seed draws the same options, and all of them occur."""
    script = make_script("random")
    drawn = [script(at(CHOICE, seed=seed)) for seed in range(20)]
    assert drawn == [script(at(CHOICE, seed=seed)) for seed in range(20)]
    assert set(drawn) == {"RED", "BLACK"}
    assert script(at(UseTool(tools=(MOVE, IDLE)))) == ToolAction("idle", {})
