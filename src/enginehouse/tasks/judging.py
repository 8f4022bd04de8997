"""How a user's task has its answers judged: what the judge is asked, and how its reply is read."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from enginehouse.core.errors import ScoringError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.strict_model import StrictModel
from enginehouse.tasks.base import JudgeCall, Outcome, Score
from enginehouse.tasks.templates import Template

PROMPT: Final = """\
Decide whether an answer is right.

Question:
{{ asked }}

{% if reference %}Right answer:
{{ reference }}

{% endif %}Answer:
{{ response }}

Compare in a few sentences. Then end with a line that is either "{{ mark }} {{ correct }}" or \
"{{ mark }} {{ wrong }}".
"""
_EMPHASIS: Final = re.compile(r"[*_`~]+")
_LONGEST_WORD: Final = 200  # characters

Word = Annotated[str, Field(min_length=1, max_length=_LONGEST_WORD)]


class JudgeDefinition(StrictModel):
    """The keys below `judge` of a task's YAML file."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    """The judge's user turn, a Jinja template over the record's fields, `asked` (the model's user
    turn), `response` (its answer), `reference` (the right answer, if there is one), and the words
    below; by default a plain question."""
    system: Annotated[str, Field(min_length=1)] | None = None
    """Its system turn, a Jinja template over the same."""
    mark: Word = "VERDICT:"
    """What stands before the verdict; the last one in the reply counts."""
    correct: Word = "CORRECT"
    """The verdict on a right answer."""
    wrong: Word = "INCORRECT"
    """The verdict on a wrong one."""

    @model_validator(mode="after")
    def _differ(self) -> JudgeDefinition:
        if _word(self.correct) == _word(self.wrong):
            raise ValueError("'correct' and 'wrong' must be different words")
        if self.prompt is not None and "response" not in self.prompt:
            raise ValueError("'prompt' does not show the answer: insert {{ response }}")
        return self


class Judging:
    """The questions to a judge, and the reading of its replies. `origin` names the task's file."""

    def __init__(self, definition: JudgeDefinition, *, origin: str) -> None:
        self._definition = definition
        self._prompt = Template(definition.prompt or PROMPT, origin=f"{origin}: judge.prompt")
        self._system = None
        if definition.system is not None:
            self._system = Template(definition.system, origin=f"{origin}: judge.system")

    def call(
        self,
        fields: Mapping[str, Any],
        *,
        item: str,
        asked: str,
        response: str,
        reference: str | None,
    ) -> JudgeCall:
        """What the judge is asked. Raises DataError if a template cannot be filled in."""
        words = self._definition
        known = {
            **fields,
            "asked": asked,
            "response": response,
            "reference": reference or "",
            "mark": words.mark,
            "correct": words.correct,
            "wrong": words.wrong,
        }
        turns = [Message("user", self._prompt.render(known, item=item))]
        if self._system is not None:
            turns.insert(0, Message("system", self._system.render(known, item=item)))
        return JudgeCall(prompt=ChatPrompt(tuple(turns)))

    def read(self, judgement: str) -> Score:
        """The score by the last verdict. Raises ScoringError if there is none that is known."""
        words = self._definition
        plain = _EMPHASIS.sub("", judgement)
        _, marked, rest = plain.rpartition(_EMPHASIS.sub("", words.mark))
        if not marked:
            raise ScoringError(
                "the judge gave no verdict",
                why=f"its reply has no {words.mark!r}",
                fix="have the judge's prompt say how to end, or give it more max_tokens",
            )
        verdict = _word(rest.strip().partition("\n")[0])
        outcomes = {_word(words.correct): Outcome.CORRECT, _word(words.wrong): Outcome.WRONG}
        if verdict not in outcomes:
            raise ScoringError(
                "the judge gave no verdict that is known",
                why=f"it wrote {verdict[:_LONGEST_WORD]!r}, neither {words.correct!r} nor "
                f"{words.wrong!r}",
                fix="have the judge's prompt say how to end",
            )
        return Score(outcome=outcomes[verdict], answer=verdict)


def _word(text: str) -> str:
    """A verdict as it is compared: without case, punctuation and white space around it."""
    return text.strip(string.whitespace + string.punctuation).casefold()
