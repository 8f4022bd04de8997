"""Every kind of game in an experiment: the arena knows none of them by name."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from tests.support.arena_fakes import (
    FakeModel,
    calls,
    new_run,
    play,
    question_of,
    red_black,
    team,
    vote_for,
)

from enginehouse.core.sampler import Completion
from enginehouse.core.tool_calls import ToolCall
from enginehouse.games.base import ToolAction


async def test_a_public_goods_game_of_three_teams(tmp_path: Path):
    """A team that deliberates, a lone model, and a script; each knows only its own options."""
    spec = red_black(
        team("us", size=3),
        team("ann"),
        team("cat", "always 0"),
        game="public_goods",
        settings={"num_rounds": 2},
        seats=("first", "second", "third"),
        pairings=(("us", "ann", "cat"),),
    )
    giving, keeping = FakeModel(vote_for("20")), FakeModel(vote_for("5"))
    (match,) = await play(spec, new_run(tmp_path), us=giving, ann=keeping)
    assert match.failure is None
    assert [match.turns[0].decisions[seat].action for seat in spec.seats] == ["20", "5", "0"]
    assert match.measures["third"]["free_riding"] == 1
    assert match.welfare == (2 * (60 + 25 * 0.6), 2 * 3 * 20 * 1.6)
    assert "first gave 20" in match.turns[0].event


async def test_foraging_by_a_model_that_calls_tools(tmp_path: Path):
    """Valid calls are executed; an agent that calls nothing idles, and that is counted."""
    spec = red_black(
        team("mover"),
        team("silent"),
        game="foraging",
        settings={"num_turns": 2},
        seats=("one", "two"),
    )

    def moves(request):
        assert "You are one at" in request.prompt.messages[-1].content
        assert "Call exactly one tool." in question_of(request)
        where = json.dumps({"target_position": [20, 0, 0]})
        call = ToolCall(id="1", name="move_to", arguments=where)
        return Completion(text="", finish_reason="tool_calls", tool_calls=(call,))

    run = new_run(tmp_path)
    mover, silent = FakeModel(moves), FakeModel(lambda _: "I like it here.")
    (match,) = await play(spec, run, mover=mover, silent=silent)
    assert match.failure is None
    first = match.turns[0].decisions
    assert first["one"].action == ToolAction("move_to", {"target_position": [20, 0, 0]})
    assert first["two"].action == ToolAction("idle", {})
    assert match.measures["one"]["distance_traveled"] == 10
    assert match.invalid == {"two": 2}
    assert {call.read_by for call in calls(run) if call.key.seat == "one"} == {"native"}
    assert match.welfare[1] is None
    assert msgspec.json.decode(msgspec.json.encode(match), type=type(match)) == match
