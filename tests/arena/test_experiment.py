"""Experiments: many matches, one journal, resumed without asking anything twice."""

from __future__ import annotations

from tests.support.arena_fakes import (
    FakeModel,
    calls,
    new_run,
    play,
    red_black,
    team,
    vote_for,
)

from enginehouse.store.runs import RunStatus


async def test_two_against_two_for_three_rounds(tmp_path):
    """The call count, the speakers and the votes are those of the original's schedule."""
    spec = red_black(team("red", size=2), team("black", size=2))
    red, black = FakeModel(vote_for("RED")), FakeModel(vote_for("BLACK"))
    run = new_run(tmp_path)
    (match,) = await play(spec, run, red=red, black=black)

    assert run.info.status is RunStatus.COMPLETE
    assert match.failure is None
    assert match.scores == {"team_a": 24, "team_b": -24}
    assert match.calls == len(red.requests) + len(black.requests) == 42
    assert [turn.decisions["team_a"].action for turn in match.turns] == ["RED"] * 3
    deliberation = match.turns[0].decisions["team_a"].deliberation
    assert deliberation is not None
    assert [poll.speaker for poll in deliberation.polls] == [1, 0]
    assert [opinion.agent for opinion in deliberation.opinions] == [1, 0]
    assert deliberation.votes == ("RED", "RED")
    assert len(calls(run)) == 42
