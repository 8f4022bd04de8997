"""Games that are played with tools: the ladder of tools/calling.py, its record and its replay."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from tests.support.arena_fakes import (
    FakeModel,
    calls,
    new_run,
    play,
    team,
)

from enginehouse.arena.records import ExperimentSpec, ModelSpec, TeamSpec
from enginehouse.core.errors import ConfigurationError, ContextOverflowError, UnsupportedError
from enginehouse.core.sampler import Capability, Completion
from enginehouse.core.tool_calls import ToolCall
from enginehouse.games.base import ToolAction

MOVE = '{"target_position": [5, 0, 5]}'


def foraging(*teams: TeamSpec, turns: int = 3, **changes: Any) -> ExperimentSpec:
    """A short match of foraging."""
    names = {agent.model for each in teams for agent in each.agents if agent.model}
    spec = ExperimentSpec(
        name="test",
        game="foraging",
        settings={"num_turns": turns},
        seats=tuple(f"seat_{number}" for number in range(len(teams))),
        models=tuple(ModelSpec(name=name) for name in sorted(names)),
        teams=teams,
        pairings=(tuple(each.name for each in teams),),
        matches=1,
    )
    return msgspec.structs.replace(spec, **changes)


def native(request):
    """A call in the model's own form, where tools are offered."""
    assert request.tools
    call = ToolCall(id="1", name="move_to", arguments=MOVE)
    return Completion(text="", finish_reason="tool_calls", tool_calls=(call,))


def without_native(request):
    """An engine that was not started for tool calls."""
    if request.tools:
        return UnsupportedError("start it with --tool-call-parser")
    if request.parameters.structured is not None:
        return '{"calls": [{"name": "move_to", "arguments": {"target_position": [5, 0, 5]}}]}'
    return "{}"


def actions(match):
    """What the first seat did."""
    return [turn.decisions["seat_0"].action for turn in match.turns]


async def test_native_calls(tmp_path):
    """One request for each turn; the step is recorded."""
    model = FakeModel(native)
    run = new_run(tmp_path)
    (match,) = await play(foraging(team("m")), run, m=model)
    assert actions(match) == [ToolAction("move_to", {"target_position": [5, 0, 5]})] * 3
    assert [c.read_by for c in calls(run)] == ["native"] * 3
    assert {turn.decisions["seat_0"].source for turn in match.turns} == {"single"}
    assert match.asked == {"seat_0": 3}
    assert match.invalid == {}


async def test_the_next_step_and_its_replay(tmp_path):
    """Whatever the engine does not support is not on record, and the replay finds its way."""
    model = FakeModel(without_native)
    then, run = new_run(tmp_path, "then"), new_run(tmp_path)
    spec = foraging(team("m"))
    (match,) = await play(spec, then, m=model)
    assert [c.read_by for c in calls(then)] == ["constrained"] * 3
    (again,) = await play(spec, run, cassette=then.journal_path)
    assert again.turns == match.turns
    assert again.diverged == {}
    with pytest.raises(ConfigurationError):
        await play(foraging(team("m"), turns=4), new_run(tmp_path, "3"), cassette=then.journal_path)


async def test_a_resumed_match_repeats_no_attempt(tmp_path):
    """Neither calls nor invalid attempts before them."""
    invalid = iter([True, False] * 20)

    def clumsy(request):
        if request.tools:
            return "I would rather talk."
        if request.parameters.structured is not None:
            if next(invalid):
                return '{"calls": [{"name": "fly", "arguments": {}}]}'
            return without_native(request)
        return '{"name": "move_to", "arguments": {"target_position": [1, 0, 1]}}'

    spec = foraging(team("m"), turns=4)
    run = new_run(tmp_path)
    await play(spec, run, m=FakeModel(clumsy))
    made = calls(run)
    assert len(made) > 4
    assert set(Counter(c.key for c in made).values()) == {1}
    lines = run.journal_path.read_bytes().splitlines(keepends=True)
    for kept in range(3, len(lines) - 1, 2):
        run.journal_path.write_bytes(b"".join(lines[:kept]))
        known = len(calls(run))
        model = FakeModel(clumsy)
        await play(spec, run, m=model)
        assert set(Counter(c.key for c in calls(run)).values()) == {1}
        assert len(model.requests) == len(calls(run)) - known


async def test_no_valid_call_is_idleness(tmp_path):
    """By default, the tool without arguments; counted as invalid."""
    model = FakeModel(lambda _: "I am at a loss for words.")
    run = new_run(tmp_path)
    (match,) = await play(foraging(team("m")), run, m=model)
    assert {action.name for action in actions(match)} == {"idle"}
    assert {turn.decisions["seat_0"].source for turn in match.turns} == {"default"}
    assert match.invalid == {"seat_0": 3}
    assert "counts as a call of idle" in str(model.requests[0].prompt)
    assert {c.read_by for c in calls(run)} == {"native", "constrained", "prompted"}


async def test_scripts_use_tools_without_arguments(tmp_path):
    """Several seats, one of which is a model."""
    spec = foraging(team("m"), team("lazy", "always idle"), team("dice", "random"))
    (match,) = await play(spec, new_run(tmp_path), m=FakeModel(native))
    assert match.turns[0].decisions["seat_1"].action == ToolAction("idle", {})
    assert match.turns[0].decisions["seat_2"].source == "script"


async def test_teams_cannot_use_tools(tmp_path):
    """Before anything is asked."""
    model = FakeModel(native)
    with pytest.raises(ConfigurationError):
        await play(foraging(team("m", size=2)), new_run(tmp_path), m=model)
    assert not model.requests


async def test_long_matches_stay_within_the_context(tmp_path):
    """Refused prompts are repeated without their oldest texts."""

    def reply(request):
        size = sum(len(message.content) for message in request.prompt.messages)
        return ContextOverflowError("too long") if size > 2000 else native(request)

    run = new_run(tmp_path)
    (match,) = await play(
        foraging(team("m"), turns=40),
        run,
        m=FakeModel(reply, capabilities=frozenset({Capability.CHAT, Capability.TOOLS})),
    )
    assert match.failure is None
    assert calls(run)[-1].dropped > 0
