"""What agents are told, in an order that a prefix cache can use.

One system message, the same for every agent of a match, holds the rules. One user message follows:
what has happened, then what the team has said in this turn, then the situation, and only then who
is asked what. Earlier text is thus always a prefix of later prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enginehouse.arena.forms import MOST_WILLING
from enginehouse.arena.records import RANDOM, DeliberationSpec, Opinion
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.games.base import Decision, UseTool

LONGEST_OPINION: Final = 4000  # characters of an opinion that its team hears

WILLINGNESS: Final = (
    "How much do you wish to speak to your team now, from 0 (not at all) to "
    f"{MOST_WILLING} (very much)?"
)
OPINION: Final = (
    "It is your turn to speak to your team. Say what your team should choose, and why. Only your "
    "team hears you."
)
VOTE: Final = "All members of your team vote now. What do you vote for?"
DECIDE: Final = "What do you choose?"
ACT: Final = "What do you do now? Call exactly one tool."
AGAIN: Final = "Your last answer to this question was not valid."


@dataclass(frozen=True)
class Prompt:
    """A prompt of which the oldest texts can be left out: of the history, then of the discussion.

    `discussion` is what the team has said in this turn, one text for each member; `ending` is the
    situation, who is asked, and the question.
    """

    system: str
    history: tuple[str, ...]
    discussion: tuple[str, ...]
    ending: tuple[str, ...]

    @property
    def droppable(self) -> int:
        """How many texts can be left out."""
        return len(self.history) + len(self.discussion)

    def chat(self, dropped: int) -> ChatPrompt:
        """Two messages, without the oldest `dropped` texts."""
        unheard = max(0, dropped - len(self.history))
        parts = (
            _section("What has happened so far:", self.history, dropped - unheard),
            _section("What your team has said in this turn:", self.discussion, unheard),
            *self.ending,
        )
        return ChatPrompt(
            (
                Message("system", self.system),
                Message("user", "\n\n".join(part for part in parts if part)),
            )
        )


def _section(title: str, texts: Sequence[str], dropped: int) -> str:
    if not texts:
        return ""
    left_out = [f"(The first {dropped} of these are left out.)"] if dropped else []
    return "\n".join([title, *left_out, *texts[dropped:]])


def system_message(
    rules: str, spec: DeliberationSpec, *, teams: bool, decision: Decision | None
) -> str:
    """The game's rules, and what is done about ties and invalid answers.

    `teams`: some team has to agree. `decision` is the match's first.
    """
    if isinstance(decision, UseTool):
        return (
            f"{rules}\n\nAn answer without a valid call of a tool counts as a call of "
            f"{decision.default.name}."
        )
    if not teams:
        decided = "it is drawn at random" if spec.no_vote == RANDOM else f"it is {spec.no_vote}"
        return (
            f"{rules}\n\nA decision that is not in the requested form is asked for once more. If "
            f"it is invalid again, {decided}."
        )
    draw = "one of the tied options is drawn at random"
    tie = draw if spec.tie == RANDOM else f"the team decides for {spec.tie}"
    no_vote = (
        "the team's decision is drawn at random"
        if spec.no_vote == RANDOM
        else f"the team decides for {spec.no_vote}"
    )
    order = {
        "poll": "Before each turn to speak, every member who has not spoken yet says how much they "
        f"wish to speak, from 0 (not at all) to {MOST_WILLING} (very much). The one who wishes it "
        "most speaks; between equals it is drawn. An invalid answer counts as less than 0.",
        "order": "In each turn the order of the speakers is drawn at random.",
        "none": "They speak in the order of their numbers.",
    }[spec.willingness]
    return (
        f"{rules}\n\n"
        "How a team with several members decides:\n"
        f"- The members speak one after another, each of them once. {order} Of what a "
        f"member says, the team hears the first {LONGEST_OPINION:,} characters.\n"
        "- When all have spoken, all members vote at the same time. The option with the most votes "
        "is the team's decision.\n"
        f"- If several options have the most votes, {tie}.\n"
        "- A vote that is not in the requested form is asked for once more, and then not counted. "
        f"If no vote counts, {no_vote}."
    )


def spoken(opinion: Opinion) -> str:
    """An opinion as a part of the discussion."""
    return f"Member {opinion.agent + 1}: {opinion.text or '(says nothing)'}"


def heard(text: str | None) -> str:
    """An opinion as the team hears it: without what goes beyond LONGEST_OPINION characters."""
    if text is None:
        return ""
    return text if len(text) <= LONGEST_OPINION else f"{text[:LONGEST_OPINION]} […]"


def identity(seat: str, agent: int, size: int) -> str:
    """Who is asked."""
    if size == 1:
        return f"You are {seat}."
    return f"You are member {agent + 1} of {size} of {seat}."
