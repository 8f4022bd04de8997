"""Matches of a journal, one after another."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tests.support.arena_fakes import FakeModel, new_run, play, red_black, team, vote_for
from tests.support.made_experiments import made_spec, make_experiment

from enginehouse.arena.records import (
    DecisionRecord,
    HeaderRecord,
    MatchRecord,
    Record,
    TurnRecord,
)
from enginehouse.arena.replay import replay_matches
from enginehouse.games.base import ToolAction
from enginehouse.store.journal import Journal, read_journal

COOPERATION = {"base": 0.5}


def test_matches_come_by_number_with_polls_and_opinions_together(tmp_path: Path):
    """The n-th poll chose the speaker of the n-th opinion."""
    spec = made_spec(COOPERATION, matches=3, agents=3)
    run = make_experiment(tmp_path / "run", spec, COOPERATION, calls=True)
    matches = list(replay_matches(run.journal_path))
    assert [match.match for match in matches] == [0, 1, 2]
    turn = matches[1].turns[0]
    assert [speech.speaker for speech in turn.seats[0].speeches] == [0, 1, 2]
    assert turn.seats[0].speeches[1].willingness == {1: 2, 2: None}
    assert len(turn.seats[0].votes) == 3
    assert turn.seats[0].action in {"RED", "BLACK"}
    assert matches[1].scores == matches[1].turns[-1].scores


async def test_a_match_that_was_really_played(tmp_path: Path):
    """Every speaker is one of those who were asked, and the keenest; nobody speaks twice."""
    run = new_run(tmp_path)
    spec = red_black(team("m", size=3), team("red", "always RED"))
    await play(spec, run, m=FakeModel(vote_for("BLACK")))
    (match,) = replay_matches(run.journal_path)
    for turn in match.turns:
        deliberating, scripted = turn.seats
        assert sorted(speech.speaker for speech in deliberating.speeches) == [0, 1, 2]
        for speech in deliberating.speeches:
            wishes = speech.willingness
            assert wishes[speech.speaker] == max(wishes.values())
            assert speech.text == "I am for BLACK."
        assert deliberating.votes == ("BLACK",) * 3
        assert (deliberating.action, deliberating.source) == ("BLACK", "majority")
        assert (scripted.action, scripted.speeches, scripted.votes) == ("RED", (), ())
    assert match.scores["team_a"] == -24


def test_a_match_that_was_played_again_is_shown_once(tmp_path: Path):
    """As it was played last; a call of a tool is shown with its arguments."""
    spec = made_spec(COOPERATION, matches=2)
    run = make_experiment(tmp_path / "run", spec, COOPERATION, failed=(0,))
    records = [entry.record for entry in read_journal(run.journal_path, Record)]
    last = next(r for r in reversed(records) if isinstance(r, MatchRecord))
    action = ToolAction(name="move_to", arguments={"x": 1})
    turn = TurnRecord(
        decisions={"team_a": DecisionRecord(action=action, source="single")},
        event="",
        scores=last.scores,
    )
    with Journal(run.journal_path, first=HeaderRecord) as journal:
        journal.append(msgspec.structs.replace(last, match=0, turns=(turn,)))
    first, second = replay_matches(run.journal_path)
    assert (first.match, second.match) == (0, 1)
    assert first.failure is None
    assert first.turns[0].seats[0].action == 'move_to {"x":1}'
    assert first.turns[0].seats[0].speeches == ()
