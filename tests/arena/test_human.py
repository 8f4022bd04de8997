"""A person who plays."""

from __future__ import annotations

import pytest
from tests.support.arena_fakes import FakeModel, calls, new_run, play, records, red_black, team
from tests.support.arena_fakes import vote_for as model_for

from enginehouse.arena.records import AgentSpec, ProvenanceRecord, TeamSpec
from enginehouse.arena.summary import summarise_experiment
from enginehouse.core.errors import ConfigurationError


class Person:
    """Answers from a list, and keeps what was shown."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.shown: list[str] = []

    async def ask(self, text: str) -> str:
        """The next answer; EOFError when there is none, as at the end of an input."""
        self.shown.append(text)
        if not self.answers:
            raise EOFError
        return self.answers.pop(0)


async def test_a_person_alone(tmp_path):
    """They answer with a word, and read only what is new."""
    person = Person("red", "VOTE: black", "BLACK")
    spec = red_black(team("me", "human"), team("f", "always BLACK"))
    run = new_run(tmp_path)
    (match,) = await play(spec, run, human=person)
    chosen = [turn.decisions["team_a"] for turn in match.turns]
    assert [d.action for d in chosen] == ["RED", "BLACK", "BLACK"]
    assert {d.source for d in chosen} == {"human"}
    assert "You are playing the Red-Black game" in person.shown[0]
    assert "You are playing the Red-Black game" not in person.shown[1]
    assert "Round 1 (" in person.shown[1]
    assert "Round 1 (" not in person.shown[2]
    (session,) = [r for r in records(run) if isinstance(r, ProvenanceRecord)]
    assert session.provenance.model == "human"
    assert not any("seeds" in note for note in summarise_experiment(run).notes)


async def test_a_person_in_a_team_of_models(tmp_path):
    """They are asked how much they wish to speak, what they say, and for their vote."""
    mixed = TeamSpec(
        name="mixed",
        agents=(AgentSpec(kind="human"), AgentSpec(kind="llm", model="m")),
    )
    spec = red_black(mixed, team("f", "always BLACK"), settings={"num_rounds": 1})
    person = Person("0", "0", "I am not sure.", "BLACK")
    run = new_run(tmp_path)
    (match,) = await play(spec, run, m=FakeModel(model_for("BLACK")), human=person)
    deliberation = match.turns[0].decisions["team_a"].deliberation
    assert deliberation is not None
    assert [o.text for o in deliberation.opinions] == ["I am for BLACK.", "I am not sure."]
    assert deliberation.votes == ("BLACK", "BLACK")


async def test_what_a_person_cannot_mean_is_asked_again(tmp_path):
    """Once, as of any other agent."""
    person = Person("h\udcffm", "black")
    spec = red_black(team("me", "human"), team("f", "always BLACK"), settings={"num_rounds": 1})
    (match,) = await play(spec, new_run(tmp_path), human=person)
    assert match.turns[0].decisions["team_a"].action == "BLACK"
    assert "not valid" in person.shown[1]


async def test_a_person_who_leaves_can_come_back(tmp_path):
    """They are not asked again what they answered."""
    spec = red_black(team("me", "human"), team("f", "always BLACK"), matches=2)
    run = new_run(tmp_path)
    with pytest.raises(EOFError):
        await play(spec, run, human=Person("red", "red", "black", "black"))
    back = Person("red", "red")
    played = await play(spec, run, human=back)
    assert len(back.shown) == 2
    assert "You are playing" in back.shown[0]
    actions = [t.decisions["team_a"].action for m in played for t in m.turns]
    assert actions == ["RED", "RED", "BLACK", "BLACK", "RED", "RED"]
    assert len(calls(run)) == 6


async def test_matches_with_a_person_are_played_one_at_a_time(tmp_path):
    """Nobody can follow two."""
    spec = red_black(team("me", "human"), team("m"), matches=3, settings={"num_rounds": 2})
    person = Person(*["red"] * 6)
    run = new_run(tmp_path)
    await play(spec, run, m=FakeModel(model_for("RED")), human=person)
    asked = [c.key.match for c in calls(run)]
    assert asked == sorted(asked)


async def test_a_person_has_to_be_there(tmp_path):
    """Before anything is asked."""
    with pytest.raises(ConfigurationError):
        await play(red_black(team("me", "human"), team("f", "always RED")), new_run(tmp_path))
