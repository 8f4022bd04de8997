"""How teams decide: polls, opinions and votes, ties, and answers that are not valid."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
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

from enginehouse.arena.lineup import match_seed
from enginehouse.arena.records import DeliberationSpec
from enginehouse.core.errors import UnknownNameError
from enginehouse.core.sampler import Capability, Completion

PLAIN = frozenset({Capability.CHAT})
RANT = "I cannot believe that they chose RED. BLACK would be best! " * 800  # about 10,000 tokens
BAD_VOTES = {
    "empty": "",
    "another language": "Ich stimme für Schwarz.",
    "refusal": "I'm sorry, but I cannot help with that.",
    "rant": RANT,
    "preferred": "[BLACK] would be preferred by everybody",
    "both words": "RED or BLACK, that is the question",
    "unclosed reasoning": "<think>They will choose RED.\nVOTE: RED",
}


def say(vote: str):
    """A model that speaks well and votes in these words, whatever the form."""
    polite = vote_for("RED")

    def reply(request):
        return vote if "vote for?" in question_of(request) else polite(request)

    return reply


def decisions(match):
    """What team_a decided in every turn."""
    return [turn.decisions["team_a"] for turn in match.turns]


@pytest.mark.parametrize("capabilities", [PLAIN, frozenset(Capability)])
@pytest.mark.parametrize("name", BAD_VOTES)
async def test_bad_votes_are_asked_for_once_more_and_then_invalid(tmp_path, name, capabilities):
    """The default policy decides, and everything is on record."""
    spec = red_black(team("odd", size=2), team("fixed", "always RED"))
    odd = FakeModel(say(BAD_VOTES[name]), capabilities=capabilities)
    run = new_run(tmp_path)
    (match,) = await play(spec, run, odd=odd)

    assert match.failure is None
    for decision in decisions(match):
        assert decision.source == "default"
        assert decision.action in ("RED", "BLACK")
        assert decision.deliberation.votes == (None, None)
    votes = [call for call in calls(run) if call.key.kind == "vote"]
    assert Counter(call.key.attempt for call in votes) == {0: 6, 1: 6}
    assert {call.value for call in votes} == {None}
    assert match.invalid == {"team_a": 6}
    assert match.asked == {"team_a": 6 + 9}
    assert match.calls == len(odd.requests) == 3 * (3 + 2 + 4)


async def test_votes_without_constraints_are_parsed(tmp_path):
    """Where the engine supports none, and where the experiment says so."""
    spec = red_black(team("m", size=2), team("fixed", "always BLACK"))
    parsed = red_black(*spec.teams, deliberation=DeliberationSpec(votes="parsed"))
    for number, (each, capabilities) in enumerate([(spec, PLAIN), (parsed, frozenset(Capability))]):
        run = new_run(tmp_path, str(number))
        (match,) = await play(each, run, m=FakeModel(vote_for("RED"), capabilities=capabilities))
        assert {c.read_by for c in calls(run) if c.key.kind == "vote"} == {"parser"}
        assert [d.action for d in decisions(match)] == ["RED"] * 3


async def test_an_invalid_vote_is_asked_for_by_choice(tmp_path):
    """The second question is short, and its answer counts."""

    def reply(request):
        structured = request.parameters.structured
        if structured is not None and structured.json_schema is not None:
            return Completion(text='{"reasoning": "on and on', finish_reason="length")
        return vote_for("BLACK")(request)

    run = new_run(tmp_path)
    spec = red_black(team("m", size=2), team("fixed", "always BLACK"))
    (match,) = await play(spec, run, m=FakeModel(reply))
    ways = [(c.key.attempt, c.read_by, c.value) for c in calls(run) if c.key.kind == "vote"]
    assert Counter(ways) == {(0, "schema", None): 6, (1, "choice", "BLACK"): 6}
    assert match.invalid == {}
    assert {d.source for d in decisions(match)} == {"majority"}


@pytest.mark.parametrize("policy", ["random", "RED", "BLACK"])
async def test_ties(tmp_path, policy):
    """By the policy, which the prompts state."""

    def reply(request):
        member = question_of(request).split("member ")[1][0]
        return vote_for("RED" if member == "1" else "BLACK")(request)

    model = FakeModel(reply)
    spec = red_black(
        team("m", size=2), team("fixed", "always RED"), deliberation=DeliberationSpec(tie=policy)
    )
    spec = msgspec.structs.replace(spec, settings={"num_rounds": 12})
    (match,) = await play(spec, new_run(tmp_path), m=model)
    assert {d.source for d in decisions(match)} == {"tie"}
    actions = {d.action for d in decisions(match)}
    assert actions == ({"RED", "BLACK"} if policy == "random" else {policy})
    system = model.requests[0].prompt.messages[0].content
    stated = "one of the tied options is drawn" if policy == "random" else f"decides for {policy}"
    assert stated in system
    (again,) = await play(spec, new_run(tmp_path, "again"), m=FakeModel(reply))
    assert again.turns == match.turns


async def test_policies_have_to_be_options(tmp_path):
    """Nothing is asked before that is known."""
    model = FakeModel(vote_for("RED"))
    for deliberation in (DeliberationSpec(tie="GREEN"), DeliberationSpec(no_vote="black")):
        spec = red_black(team("m"), team("f", "always RED"), deliberation=deliberation)
        with pytest.raises(UnknownNameError):
            await play(spec, new_run(tmp_path), m=model)
    assert not model.requests


async def test_no_vote_can_be_an_option(tmp_path):
    """The policy is stated in the prompts and recorded as the default."""
    model = FakeModel(say("no"))
    spec = red_black(
        team("m", size=3),
        team("fixed", "always RED"),
        deliberation=DeliberationSpec(no_vote="BLACK"),
    )
    (match,) = await play(spec, new_run(tmp_path), m=model)
    assert {(d.source, d.action) for d in decisions(match)} == {("default", "BLACK")}
    assert "If no vote counts, the team decides for BLACK" in (
        model.requests[0].prompt.messages[0].content
    )


async def test_the_keenest_speaks_and_equals_are_drawn(tmp_path):
    """An invalid wish counts as the least; the speaker does not wish again."""
    wishes = {"1": "0", "2": "no idea", "3": "3", "4": "3"}

    def reply(request):
        question = question_of(request)
        if "How much do you wish" in question:
            return wishes[question.split("member ")[1][0]]
        return vote_for("BLACK")(request)

    spec = red_black(team("m", size=4), team("fixed", "always RED"), settings={"num_rounds": 8})
    (match,) = await play(spec, new_run(tmp_path), m=FakeModel(reply))
    orders = set()
    for decision in decisions(match):
        polls = decision.deliberation.polls
        assert polls[0].willingness == {0: 0, 1: None, 2: 3, 3: 3}
        assert [len(poll.willingness) for poll in polls] == [4, 3, 2, 1]
        orders.add(tuple(poll.speaker for poll in polls))
    assert orders == {(2, 3, 0, 1), (3, 2, 0, 1)}
    assert match.invalid == {"team_a": 8 * 4}


async def test_a_seeded_order_takes_no_polls(tmp_path):
    """Every member speaks once, in an order that differs between turns."""
    spec = red_black(
        team("m", size=3),
        team("fixed", "always RED"),
        deliberation=DeliberationSpec(willingness="order"),
        settings={"num_rounds": 6},
    )
    run = new_run(tmp_path)
    (match,) = await play(spec, run, m=FakeModel(vote_for("BLACK")))
    assert Counter(c.key.kind for c in calls(run)) == {"opinion": 18, "vote": 18}
    orders = [tuple(o.agent for o in d.deliberation.opinions) for d in decisions(match)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len(set(orders)) > 1
    assert all(d.deliberation.polls == () for d in decisions(match))


async def test_members_speak_in_the_order_of_their_numbers_without_polls(tmp_path):
    """In every turn, as the rules in the prompt say."""
    model = FakeModel(vote_for("BLACK"))
    spec = red_black(
        team("m", size=3),
        team("fixed", "always RED"),
        deliberation=DeliberationSpec(willingness="none"),
    )
    run = new_run(tmp_path)
    (match,) = await play(spec, run, m=model)
    assert Counter(c.key.kind for c in calls(run)) == {"opinion": 9, "vote": 9}
    for decision in decisions(match):
        assert [opinion.agent for opinion in decision.deliberation.opinions] == [0, 1, 2]
    assert "in the order of their numbers" in model.requests[0].prompt.messages[0].content


async def test_a_lone_agent_decides_without_deliberation(tmp_path):
    """One call for each turn, and no rules of teams in the prompt."""
    model = FakeModel(vote_for("RED"))
    run = new_run(tmp_path)
    (match,) = await play(red_black(team("m"), team("fixed", "always RED")), run, m=model)
    assert [(d.action, d.source) for d in decisions(match)] == [("RED", "single")] * 3
    assert len(model.requests) == 3
    assert "How a team with several members decides" not in str(model.requests[0].prompt)


@pytest.mark.parametrize(("policy", "stated"), [("random", "drawn at random"), ("BLACK", "BLACK")])
async def test_a_lone_agent_is_told_about_invalid_answers(tmp_path, policy, stated):
    """By the same policy as a team without a valid vote."""
    model = FakeModel(lambda _: "no")
    spec = red_black(
        team("m"), team("fixed", "always RED"), deliberation=DeliberationSpec(no_vote=policy)
    )
    (match,) = await play(spec, new_run(tmp_path), m=model)
    assert {d.source for d in decisions(match)} == {"default"}
    assert f"invalid again, it is {stated}" in model.requests[0].prompt.messages[0].content


async def test_scripts_in_a_team_of_models(tmp_path):
    """They speak last, say what they will vote for, and are not asked."""
    agents = (*team("m", size=1).agents, *team("x", "always RED", "always RED").agents)
    mixed = msgspec.structs.replace(team("mixed", "random"), agents=agents)
    model = FakeModel(vote_for("BLACK"))
    spec = red_black(mixed, team("fixed", "always RED"))
    (match,) = await play(spec, new_run(tmp_path), m=model)
    for decision in decisions(match):
        assert decision.action == "RED"
        assert decision.deliberation.votes == ("BLACK", "RED", "RED")
        assert decision.deliberation.opinions[-1].text == "I vote for RED."
    assert "Member 2: I vote for RED." in model.requests[-1].prompt.messages[1].content


async def test_a_team_of_scripts_decides_by_majority_without_words(tmp_path):
    """Nobody is asked."""
    spec = red_black(
        team("mixed", "always RED", "always RED", "always BLACK"), team("b", "always BLACK")
    )
    (match,) = await play(spec, new_run(tmp_path))
    assert [(d.action, d.source) for d in decisions(match)] == [("RED", "script")] * 3
    assert match.calls == 0


async def test_a_rant_is_heard_up_to_a_length(tmp_path):
    """The team's prompts stay short; the journal has all of it."""

    def reply(request):
        return RANT if "your turn to speak" in question_of(request) else vote_for("RED")(request)

    model = FakeModel(reply)
    run = new_run(tmp_path)
    (match,) = await play(red_black(team("m", size=2), team("f", "always RED")), run, m=model)
    opinions = decisions(match)[0].deliberation.opinions
    assert all(len(opinion.text) < 4100 for opinion in opinions)
    recorded = next(c for c in calls(run) if c.key.kind == "opinion")
    assert recorded.response.completions[0].text == RANT
    longest = max(len(r.prompt.messages[1].content) for r in model.requests)
    assert longest < 2 * 4100 + 3000


async def test_an_empty_opinion_is_heard_as_silence(tmp_path):
    """The discussion goes on."""

    def reply(request):
        return " " if "your turn to speak" in question_of(request) else vote_for("RED")(request)

    model = FakeModel(reply)
    spec = red_black(team("m", size=2), team("f", "always RED"))
    (match,) = await play(spec, new_run(tmp_path), m=model)
    assert [o.text for o in decisions(match)[0].deliberation.opinions] == ["", ""]
    assert "(says nothing)" in model.requests[-1].prompt.messages[1].content


async def test_every_draw_comes_from_the_matchs_seed(tmp_path):
    """Another experiment's seed gives other matches, and each match has its own."""
    spec = red_black(team("a", "random"), team("b", "random"), matches=6)
    first = await play(spec, new_run(tmp_path, "1"))
    again = await play(spec, new_run(tmp_path, "2"))
    other = await play(msgspec.structs.replace(spec, seed=1), new_run(tmp_path, "3"))
    assert [m.turns for m in first] == [m.turns for m in again]
    assert [m.turns for m in first] != [m.turns for m in other]
    assert len({str(m.turns) for m in first}) > 1
    assert [m.seed for m in first] == [match_seed(spec, i) for i in range(6)]
