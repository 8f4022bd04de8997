"""What each agent of a finished match was asked and answered, with rewards, for a trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.arena.recordings import require_readable
from enginehouse.arena.records import (
    CallKey,
    CallKind,
    CallRecord,
    HeaderRecord,
    MatchRecord,
    PrefixCacheRecord,
    ProvenanceRecord,
    RepairRecord,
)
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.tool_calls import ToolCall
from enginehouse.store.journal import read_journal, read_record


class TraceStep(msgspec.Struct, frozen=True, kw_only=True):
    """One request to the agent's model and its answer.

    `turn` counts from 0. `kind` is willingness, opinion, vote or action; `step` and `attempt`
    number the requests within the turn (attempt 1 and more: an invalid answer was asked for again).
    `prompt_token_ids`, `token_ids` and `logprobs` (natural logarithms, one for each of
    `token_ids`) are the engine's own, None if it does not report them. `reasoning` is what the
    engine separated from `text`. `value` is the answer as it was read, None if it was invalid and
    for an action; `read_by` is how. `reward` is what the agent's team gained in this turn.
    `replayed`: a cassette answered, not the model.
    """

    turn: int
    kind: CallKind
    step: int
    attempt: int
    request: SampleRequest
    prompt_token_ids: tuple[int, ...] | None
    token_ids: tuple[int, ...] | None
    logprobs: tuple[float, ...] | None
    text: str
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None
    value: Any
    read_by: str
    reward: float
    replayed: bool


class AgentTrace(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent was asked and answered in one match. Scripts and people have no trace.

    `pairing` names the teams in the order of their seats; matches with the same `seed` are paired.
    `agent` numbers the team's members from 0. `model` is the name of the experiment's model, and
    `weights_digest` and `adapter_digest` are those of what answered, None if unknown. `reward` is
    the score of the agent's team at the end, `scores` has those of all seats, `total` their sum;
    `measures` are the game's for the agent's seat.
    """

    match: int
    pairing: str
    seed: int
    seat: str
    team: str
    agent: int
    model: str
    weights_digest: str | None
    adapter_digest: str | None
    reward: float
    scores: Mapping[str, float]
    total: float
    measures: Mapping[str, float | None]
    steps: tuple[TraceStep, ...]


class _Call(msgspec.Struct, frozen=True, tag="call"):
    key: CallKey
    response: msgspec.Raw = msgspec.Raw(b"null")


_Line = HeaderRecord | ProvenanceRecord | _Call | MatchRecord | PrefixCacheRecord | RepairRecord


def agent_traces(journal: Path) -> Iterator[AgentTrace]:
    """The traces of every match that ended well, in the order in which they ended.

    Calls are found again by their place in the file: in memory are the places of the calls of
    unfinished matches, and one match's calls. Raises StoreError. Blocking.
    """
    places: dict[int, dict[CallKey, int]] = {}
    sessions: dict[int, ProvenanceRecord] = {}
    for entry in read_journal(journal, _Line):
        record = entry.record
        if isinstance(record, HeaderRecord):
            require_readable(record)
        elif isinstance(record, _Call):
            if bytes(record.response) != b"null":
                # Of two answers to one call, the last counts.
                places.setdefault(record.key.match, {})[record.key] = entry.offset
        elif isinstance(record, ProvenanceRecord):
            sessions[record.id] = record
        elif isinstance(record, MatchRecord) and record.failure is None:
            calls = [
                read_record(journal, CallRecord, offset=offset)
                for _, offset in sorted(
                    places.pop(record.match, {}).items(), key=lambda item: item[1]
                )
            ]
            yield from _of_match(record, calls, sessions)


def _of_match(
    match: MatchRecord, calls: list[CallRecord], sessions: Mapping[int, ProvenanceRecord]
) -> Iterator[AgentTrace]:
    by_agent: dict[tuple[str, int], list[CallRecord]] = {}
    for call in calls:
        by_agent.setdefault((call.key.seat, call.key.agent), []).append(call)
    for (seat, agent), own in sorted(by_agent.items()):
        session = sessions[own[-1].provenance]
        yield AgentTrace(
            match=match.match,
            pairing=match.pairing,
            seed=match.seed,
            seat=seat,
            team=match.teams[seat],
            agent=agent,
            model=session.model,
            weights_digest=session.provenance.weights_digest,
            adapter_digest=session.provenance.adapter_digest,
            reward=match.scores[seat],
            scores=match.scores,
            total=match.welfare[0],
            measures=match.measures[seat],
            steps=tuple(_step(call, match) for call in sorted(own, key=lambda call: call.key.turn)),
        )


def _step(call: CallRecord, match: MatchRecord) -> TraceStep:
    assert call.response is not None
    answer = call.response.completions[0]
    key, turn = call.key, call.key.turn
    before = match.turns[turn - 1].scores[key.seat] if turn else 0.0
    return TraceStep(
        turn=turn,
        kind=key.kind,
        step=key.step,
        attempt=key.attempt,
        request=call.request,
        prompt_token_ids=call.response.prompt_token_ids,
        token_ids=answer.token_ids,
        logprobs=None if answer.logprobs is None else tuple(t.logprob for t in answer.logprobs),
        text=answer.text,
        reasoning=answer.reasoning,
        tool_calls=answer.tool_calls,
        finish_reason=answer.finish_reason,
        value=call.value,
        read_by=call.read_by,
        reward=match.turns[turn].scores[key.seat] - before,
        replayed=call.replayed,
    )
