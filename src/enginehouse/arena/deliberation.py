"""How a team comes to a decision: scripts, a lone agent, or several that deliberate.

After RedBlackBench: while members have not spoken, all of them say at once how much they wish to,
and the keenest speaks; then all vote at once, and the majority decides.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from enginehouse.arena import prompts
from enginehouse.arena.calls import MatchCalls, Question
from enginehouse.arena.forms import (
    AnswerForm,
    ChoiceVote,
    ChosenWillingness,
    FreeOpinion,
    ParsedVote,
    ParsedWillingness,
    SchemaVote,
)
from enginehouse.arena.models import ActiveModel
from enginehouse.arena.records import (
    HUMAN,
    RANDOM,
    CallKey,
    CallKind,
    DecisionRecord,
    Deliberation,
    DeliberationSpec,
    Opinion,
    Poll,
    Source,
)
from enginehouse.arena.scripts import Past, Position, Script
from enginehouse.arena.together import run_together
from enginehouse.games.base import Action, Decision, Pick, ToolAction, UseTool

_UNKNOWN: Final = -1  # the willingness of an invalid answer: below all others


@dataclass(frozen=True, kw_only=True)
class Agent:
    """A member of a team: a model (which may be a person at the terminal), or a script."""

    kind: str
    model: ActiveModel | None = None
    script: Script | None = None


@dataclass(frozen=True, kw_only=True)
class TeamTurn:
    """What a team knows when it decides."""

    match: int
    turn: int
    seat: str
    agents: tuple[Agent, ...]
    decision: Decision
    past: Past
    system: str
    history: tuple[str, ...]
    situation: str
    seed: int
    spec: DeliberationSpec

    def draw(self, purpose: str) -> random.Random:
        """Seeded randomness for one purpose; the same whenever the match is played."""
        return random.Random(self._seed(purpose))

    def _seed(self, purpose: str) -> str:
        return f"{self.seed}/{self.turn}/{self.seat}/{purpose}"

    def key(self, kind: CallKind, agent: int, *, step: int = 0, attempt: int = 0) -> CallKey:
        """The key of one of the team's calls in this turn."""
        return CallKey(
            match=self.match,
            turn=self.turn,
            seat=self.seat,
            agent=agent,
            kind=kind,
            step=step,
            attempt=attempt,
        )

    def scripted(self, agent: int) -> Action:
        """What the agent's script says."""
        script = self.agents[agent].script
        assert script is not None
        return script(
            Position(
                seat=self.seat,
                decision=self.decision,
                past=self.past,
                seed=self._seed(f"script {agent}"),
            )
        )


def decide_by_script(turn: TeamTurn) -> DecisionRecord:
    """The decision of a team of scripts: without words, by majority."""
    if len(turn.agents) == 1:
        return DecisionRecord(action=turn.scripted(0), source="script")
    votes = [turn.scripted(agent) for agent in range(len(turn.agents))]
    action, _ = _majority([vote for vote in votes if isinstance(vote, str)], turn)
    return DecisionRecord(action=action, source="script")


async def decide(turn: TeamTurn, calls: MatchCalls) -> DecisionRecord:
    """The decision of a team with at least one agent that has to be asked. Raises WireError."""
    if len(turn.agents) == 1:
        return await _decide_alone(turn, calls)
    assert isinstance(turn.decision, Pick), "only a single agent can call tools"
    polls, opinions = await _discuss(turn, calls)
    votes = await run_together(
        _vote(turn, calls, agent=agent, opinions=opinions, question=prompts.VOTE)
        for agent in range(len(turn.agents))
    )
    action, source = _majority([vote for vote in votes if vote is not None], turn)
    return DecisionRecord(
        action=action,
        source=source,
        deliberation=Deliberation(polls=tuple(polls), opinions=tuple(opinions), votes=tuple(votes)),
    )


async def _decide_alone(turn: TeamTurn, calls: MatchCalls) -> DecisionRecord:
    agent = turn.agents[0]
    source: Source = "human" if agent.kind == HUMAN else "single"
    if isinstance(turn.decision, Pick):
        vote = await _vote(turn, calls, agent=0, opinions=(), question=prompts.DECIDE)
        if vote is not None:
            return DecisionRecord(action=vote, source=source)
        action, _ = _majority([], turn)
        return DecisionRecord(action=action, source="default")
    action_called = await _act(turn, calls, turn.decision)
    if action_called is not None:
        return DecisionRecord(action=action_called, source=source)
    return DecisionRecord(action=turn.decision.default, source="default")


async def _discuss(turn: TeamTurn, calls: MatchCalls) -> tuple[list[Poll], list[Opinion]]:
    """Let every member speak once; returns the polls and what was said, in order."""
    silent = list(range(len(turn.agents)))
    if turn.spec.willingness == "order":
        turn.draw("order").shuffle(silent)
    polls: list[Poll] = []
    opinions: list[Opinion] = []
    while silent:
        speaker = silent[0]
        if turn.spec.willingness == "poll":
            polls.append(await _poll(turn, calls, silent=silent, opinions=opinions))
            speaker = polls[-1].speaker
        silent.remove(speaker)
        text = await _speak(turn, calls, speaker=speaker, opinions=opinions)
        opinions.append(Opinion(agent=speaker, text=text))
    return polls, opinions


async def _poll(
    turn: TeamTurn, calls: MatchCalls, *, silent: Sequence[int], opinions: Sequence[Opinion]
) -> Poll:
    async def wish(agent: int) -> int | None:
        if turn.agents[agent].script is not None:
            return 0
        level: int | None = await calls.ask(
            _question(
                turn,
                turn.key("willingness", agent, step=len(opinions)),
                prompts.WILLINGNESS,
                opinions=opinions,
                forms=(ChosenWillingness(), ParsedWillingness()),
                together=len(silent),
            )
        )
        _count(turn, calls, level)
        return level

    levels = await run_together(wish(agent) for agent in silent)
    willingness = dict(zip(silent, levels, strict=True))
    ranked = {a: _UNKNOWN if level is None else level for a, level in willingness.items()}
    keenest = [agent for agent in silent if ranked[agent] == max(ranked.values())]
    speaker = keenest[0]
    if len(keenest) > 1:
        speaker = turn.draw(f"speaker {len(opinions)}").choice(keenest)
    return Poll(willingness=willingness, speaker=speaker)


async def _speak(
    turn: TeamTurn, calls: MatchCalls, *, speaker: int, opinions: Sequence[Opinion]
) -> str:
    if turn.agents[speaker].script is not None:
        return f"I vote for {turn.scripted(speaker)}."
    text = await calls.ask(
        _question(
            turn,
            turn.key("opinion", speaker, step=len(opinions)),
            prompts.OPINION,
            opinions=opinions,
            forms=(FreeOpinion(),),
        )
    )
    return prompts.heard(text)


async def _vote(
    turn: TeamTurn,
    calls: MatchCalls,
    *,
    agent: int,
    opinions: Sequence[Opinion],
    question: str,
) -> str | None:
    """An agent's vote; an invalid one is asked for once more, then it is None."""
    if turn.agents[agent].script is not None:
        scripted = turn.scripted(agent)
        assert isinstance(scripted, str)
        return scripted
    assert isinstance(turn.decision, Pick)
    options = turn.decision.options
    free: tuple[AnswerForm, ...] = (ParsedVote(options),)
    again: tuple[AnswerForm, ...] = (ParsedVote(options, again=True),)
    if turn.spec.votes == "constrained":
        free = (SchemaVote(options), *free)
        again = (ChoiceVote(options), SchemaVote(options, reasoned=False), *again)
    vote: str | None = None
    for attempt, forms in enumerate((free, again)):
        vote = await calls.ask(
            _question(
                turn,
                turn.key("vote", agent, step=len(turn.agents), attempt=attempt),
                f"{prompts.AGAIN} {question}" if attempt else question,
                opinions=opinions,
                forms=forms,
                together=1 if attempt else len(turn.agents),
            )
        )
        if vote is not None:
            break
    _count(turn, calls, vote)
    return vote


async def _act(turn: TeamTurn, calls: MatchCalls, decision: UseTool) -> ToolAction | None:
    question = _question(turn, turn.key("action", 0), prompts.ACT)
    action = await calls.call_tool(question, tools=decision.tools)
    _count(turn, calls, action)
    return action


def _question(
    turn: TeamTurn,
    key: CallKey,
    question: str,
    *,
    opinions: Sequence[Opinion] = (),
    forms: tuple[AnswerForm, ...] = (),
    together: int = 1,
) -> Question:
    model = turn.agents[key.agent].model
    assert model is not None
    who = prompts.identity(turn.seat, key.agent, len(turn.agents))
    return Question(
        key=key,
        model=model,
        prompt=prompts.Prompt(
            system=turn.system,
            history=turn.history,
            discussion=tuple(prompts.spoken(opinion) for opinion in opinions),
            ending=(turn.situation, f"{who} {question}"),
        ),
        forms=forms,
        together=together,
    )


def _majority(votes: Sequence[str], turn: TeamTurn) -> tuple[str, Source]:
    """The option with the most votes; ties, and no votes at all, by the policies."""
    assert isinstance(turn.decision, Pick)
    options = turn.decision.options
    if not votes:
        if turn.spec.no_vote != RANDOM:
            return turn.spec.no_vote, "default"
        return turn.draw("no vote").choice(options), "default"
    counts = Counter(votes)
    most = max(counts.values())
    tied = [option for option in options if counts[option] == most]
    if len(tied) == 1:
        return tied[0], "majority"
    if turn.spec.tie != RANDOM:
        return turn.spec.tie, "tie"
    return turn.draw("tie").choice(tied), "tie"


def _count(turn: TeamTurn, calls: MatchCalls, answer: Any) -> None:
    calls.figures.asked[turn.seat] += 1
    if answer is None:
        calls.figures.invalid[turn.seat] += 1
