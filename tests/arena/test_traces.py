"""Traces for a trainer: every answer of an agent in order, with its tokens and rewards."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.arena_fakes import FakeModel, new_run, play, red_black, team, vote_for
from tests.support.made_experiments import made_spec, make_experiment

from enginehouse.arena.records import CallRecord, HeaderRecord, MatchRecord, Record
from enginehouse.arena.traces import agent_traces
from enginehouse.core.messages import ChatPrompt
from enginehouse.store.journal import Journal, read_journal

COOPERATION = {"base": 0.7, "lora": 0.4}


async def test_every_call_of_an_agent_is_a_step(tmp_path: Path):
    """Of a match that the arena played: 3 rounds, 2 agents against a script."""
    run = new_run(tmp_path)
    spec = red_black(team("m", size=2), team("red", "always RED"))
    (match,) = await play(spec, run, m=FakeModel(vote_for("BLACK")))
    traces = list(agent_traces(run.journal_path))
    assert [(t.seat, t.agent, t.model) for t in traces] == [
        ("team_a", 0, "m"),
        ("team_a", 1, "m"),
    ]
    assert sum(len(trace.steps) for trace in traces) == match.calls == 3 * 2 * (2 + 5) / 2
    for trace in traces:
        assert trace.reward == match.scores["team_a"] == -24
        assert [step.turn for step in trace.steps] == sorted(step.turn for step in trace.steps)
        assert {step.turn: step.reward for step in trace.steps} == {0: -6, 1: -6, 2: -12}
        votes = [step for step in trace.steps if step.kind == "vote"]
        assert [step.value for step in votes] == ["BLACK"] * 3
        assert votes[0].token_ids == (1, 2)
        assert isinstance(votes[0].request.prompt, ChatPrompt)
    assert traces[0].measures["cooperation"] == 1


def test_tokens_and_log_probabilities_are_those_of_the_engine(tmp_path: Path):
    """And who answered is named by digests."""
    run = make_experiment(
        tmp_path / "run",
        made_spec(COOPERATION, matches=2, agents=2),
        COOPERATION,
        calls=True,
    )
    traces = list(agent_traces(run.journal_path))
    assert len(traces) == 2 * 4 * 2 * 2
    lora = next(trace for trace in traces if trace.team == "lora")
    assert lora.adapter_digest.startswith("ab12")
    step = lora.steps[0]
    assert len(step.token_ids) == len(step.logprobs) == 4
    assert step.logprobs == (-0.5,) * 4
    assert step.prompt_token_ids == (1, 2, 3)
    assert sum({s.turn: s.reward for s in lora.steps}.values()) == pytest.approx(lora.reward)
    assert lora.total == sum(lora.scores.values())


def test_only_matches_that_ended_well_have_traces(tmp_path: Path):
    """A failed one has them once it was played to its end, with the calls that it kept."""
    spec = made_spec({"base": 0.5}, matches=3, agents=2)
    run = make_experiment(tmp_path / "run", spec, {"base": 0.5}, failed=(1,), calls=True)
    assert {trace.match for trace in agent_traces(run.journal_path)} == {0, 2}
    records = [entry.record for entry in read_journal(run.journal_path, Record)]
    failed = next(r for r in records if isinstance(r, MatchRecord) and r.failure)
    with Journal(run.journal_path, first=HeaderRecord) as journal:
        whole = next(r for r in records if isinstance(r, MatchRecord) and r.match == 0)
        journal.append(msgspec.structs.replace(whole, match=failed.match))
    assert {trace.match for trace in agent_traces(run.journal_path)} == {0, 1, 2}


def test_of_two_answers_the_last_counts_and_failures_do_not(tmp_path: Path):
    """A call that was made again replaces its answer; one that failed is no step."""
    spec = made_spec({"base": 0.5}, matches=1, agents=2)
    run = make_experiment(tmp_path / "run", spec, {"base": 0.5}, calls=True)
    records = [entry.record for entry in read_journal(run.journal_path, Record)]
    first = next(r for r in records if isinstance(r, CallRecord))
    before = list(agent_traces(run.journal_path))
    run.journal_path.unlink()
    with Journal(run.journal_path, first=HeaderRecord) as journal:
        for record in records:
            if isinstance(record, MatchRecord):
                journal.append(msgspec.structs.replace(first, value="again"))
                missing = msgspec.structs.replace(first.key, turn=9)
                journal.append(msgspec.structs.replace(first, key=missing, response=None))
            journal.append(record)
    after = list(agent_traces(run.journal_path))
    assert [len(trace.steps) for trace in after] == [len(trace.steps) for trace in before]
    values = [s.value for t in after for s in t.steps if s.turn == 0 and s.kind == "opinion"]
    assert values.count("again") == 1
