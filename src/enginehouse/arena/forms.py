"""The forms in which agents are asked to answer, and how each form is read.

What a model wrote for itself is removed first (core/reasoning.py). An answer that does not have the
form exactly is invalid: nothing is guessed. Reading is linear in the length of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from enginehouse.core.reasoning import strip_reasoning
from enginehouse.core.sampler import Capability, Completion
from enginehouse.core.sampling import StructuredOutput

MOST_WILLING: Final = 3
_LONGEST_LINE: Final = 200  # characters of a line that holds nothing but a vote
_LEVELS: Final = tuple(str(level) for level in range(MOST_WILLING + 1))
_DECORATION: Final = " \t*_`\"'.!"


class AnswerForm(Protocol):
    """How an answer is asked for and read. `name` is what records call it (`read_by`)."""

    @property
    def name(self) -> str:
        """What records call it."""
        ...

    @property
    def needs(self) -> frozenset[Capability]:
        """What an engine must support."""
        ...

    @property
    def request(self) -> str:
        """The end of the question, which states the form."""
        ...

    @property
    def constraint(self) -> StructuredOutput | None:
        """What the output is constrained to."""
        ...

    def read(self, completion: Completion) -> Any:
        """The answer, or None if it is invalid."""
        ...


class _BareVote(msgspec.Struct):
    vote: str


class _ReasonedVote(_BareVote):
    reasoning: str


@dataclass(frozen=True)
class SchemaVote:
    """A JSON object with one of `options` as "vote"; the reasoning, if any, is written first."""

    options: tuple[str, ...]
    reasoned: bool = True
    name = "schema"
    needs = frozenset({Capability.JSON_SCHEMA})

    @property
    def request(self) -> str:
        """The end of the question."""
        vote = " or ".join(f'"{option}"' for option in self.options)
        if not self.reasoned:
            return f'Answer with a JSON object: {{"vote": {vote}}}.'
        return (
            "Think before you decide. Answer with a JSON object: "
            f'{{"reasoning": "your thoughts in a few sentences", "vote": {vote}}}.'
        )

    @property
    def constraint(self) -> StructuredOutput:
        """The object's schema."""
        fields: dict[str, Any] = {"reasoning": {"type": "string"}} if self.reasoned else {}
        fields["vote"] = {"type": "string", "enum": list(self.options)}
        return StructuredOutput(
            json_schema={
                "type": "object",
                "properties": fields,
                "required": list(fields),
                "additionalProperties": False,
            }
        )

    def read(self, completion: Completion) -> str | None:
        """The vote; None if the object is not whole, or the vote is not an option."""
        if completion.finish_reason == "length":
            return None
        kind: type[_BareVote] = _ReasonedVote if self.reasoned else _BareVote
        try:
            vote = msgspec.json.decode(strip_reasoning(completion.text), type=kind).vote
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
        return vote if vote in self.options else None


@dataclass(frozen=True)
class ChoiceVote:
    """One of `options` and nothing else."""

    options: tuple[str, ...]
    name = "choice"
    needs = frozenset({Capability.CHOICE})

    @property
    def request(self) -> str:
        """The end of the question."""
        return f"Answer with one of these words and nothing else: {', '.join(self.options)}."

    @property
    def constraint(self) -> StructuredOutput:
        """The options."""
        return StructuredOutput(choice=self.options)

    def read(self, completion: Completion) -> str | None:
        """The option; None for anything else."""
        text = strip_reasoning(completion.text).strip()
        return text if text in self.options else None


@dataclass(frozen=True)
class ParsedVote:
    """A free text whose last line is "VOTE: " and an option, or that is just an option."""

    options: tuple[str, ...]
    again: bool = False
    name = "parser"
    needs = frozenset({Capability.CHAT})
    constraint = None

    @property
    def request(self) -> str:
        """The end of the question."""
        lines = " or ".join(f"VOTE: {option}" for option in self.options)
        if self.again:
            return f"Answer with this one line and nothing else: {lines}"
        return f"Think before you decide. The last line of your answer must be: {lines}"

    def read(self, completion: Completion) -> str | None:
        """The vote; None if the last line is anything else, or the answer was cut off."""
        if completion.finish_reason == "length":
            return None
        text = strip_reasoning(completion.text).strip()
        line = _last_line(text)
        label, colon, vote = line.partition(":")
        if not colon:
            return _option(line, self.options) if line == text else None
        if label.strip(_DECORATION).casefold() != "vote":
            return None
        return _option(vote, self.options)


@dataclass(frozen=True)
class ChosenWillingness:
    """A digit from 0 to 3, by constrained decoding."""

    name = "choice"
    needs = frozenset({Capability.CHOICE})
    request = "Answer with one digit and nothing else: 0, 1, 2 or 3."
    constraint = StructuredOutput(choice=_LEVELS)

    def read(self, completion: Completion) -> int | None:
        """The level; None for anything else."""
        text = strip_reasoning(completion.text).strip()
        return int(text) if text in _LEVELS else None


@dataclass(frozen=True)
class ParsedWillingness:
    """A digit from 0 to 3 alone on the last line; "WILLINGNESS:" may stand before it."""

    name = "parser"
    needs = frozenset({Capability.CHAT})
    request = "Answer with one digit and nothing else: 0, 1, 2 or 3."
    constraint = None
    _LINE = re.compile(r"(?:willingness\W{1,5})?([0-3])", re.IGNORECASE)

    def read(self, completion: Completion) -> int | None:
        """The level; None for anything else."""
        line = _last_line(strip_reasoning(completion.text).strip())
        match = self._LINE.fullmatch(line.strip(_DECORATION))
        return int(match[1]) if match else None


@dataclass(frozen=True)
class FreeOpinion:
    """Free text."""

    name = "parser"
    needs = frozenset({Capability.CHAT})
    request = "Speak in a few sentences."
    constraint = None

    def read(self, completion: Completion) -> str | None:
        """The text; None if nothing is left without the reasoning."""
        return strip_reasoning(completion.text).strip() or None


def _last_line(text: str) -> str:
    """The last line, or "" if it is longer than any vote."""
    line = text[text.rfind("\n") + 1 :]
    return line if len(line) <= _LONGEST_LINE else ""


def _option(text: str, options: Sequence[str]) -> str | None:
    word = text.strip(_DECORATION).casefold()
    return next((option for option in options if option.casefold() == word), None)
