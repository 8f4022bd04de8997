"""The metrics of a user's task: by name, by regular expression, or a function of the user's."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from enginehouse.core.errors import ConfigurationError, ScoringError, nearest
from enginehouse.tasks.base import Outcome, Score, ScoringProgram
from enginehouse.tasks.numbers import final_number, right_number, written
from enginehouse.tasks.scoring_programs import describe

REGEX: Final = "regex:"
CHOICE: Final = "choice"
JUDGE: Final = "judge"
MEANINGS: Final = {
    "exact_match": "the text is the answer, apart from white space at both ends",
    "contains": "the answer occurs in the text, in the same case",
    "number": "the number marked #### or boxed, else the last number, equals the answer",
    JUDGE: "another model finds the answer right",
    CHOICE: "acc_norm: the right choice has the highest log-likelihood per character",
}

TextMetric = Callable[[str, str], Score]
"""Scores (text, answer)."""


class ProgramMetric(msgspec.Struct, frozen=True, kw_only=True):
    """A metric that a scoring program applies; `source` is the bytes of a user's module."""

    program: ScoringProgram
    source: bytes = b""


def _outcome(correct: bool) -> Outcome:  # noqa: FBT001
    return Outcome.CORRECT if correct else Outcome.WRONG


def _exact_match(text: str, answer: str) -> Score:
    found = text.strip()
    return Score(outcome=_outcome(found == answer.strip()), answer=found)


def _contains(text: str, answer: str) -> Score:
    return Score(outcome=_outcome(answer.strip() in text))


def _same_number(text: str, answer: str) -> Score:
    number = final_number(text)
    if number is None:
        return Score(outcome=Outcome.UNPARSABLE)
    return Score(outcome=_outcome(number == right_number(answer)), answer=written(number))


_OF_TEXTS: Final[Mapping[str, TextMetric]] = {
    "exact_match": _exact_match,
    "contains": _contains,
    "number": _same_number,
}


def load_metric(
    name: str, *, folder: Path, trusted: bool = False, seconds: float = 10.0
) -> TextMetric | ProgramMetric:
    """The metric called `name`, not "choice" or "judge".

    A module beside the YAML file takes precedence.
    Raises ConfigurationError for an unknown name, a bad pattern, and a failing import. Blocking for
    patterns and functions: their program is started once to see that it loads.
    """
    if name in _OF_TEXTS:
        return _OF_TEXTS[name]
    if name.startswith(REGEX):
        pattern = name.removeprefix(REGEX)
        return _loaded(
            ScoringProgram(
                code=json.dumps({"kind": "pattern", "pattern": pattern}),
                name=f"the metric {name}",
                seconds=seconds,
            ),
            message=f"metric {name!r} is not a regular expression",
            fix="correct it; patterns are those of Python's `re`",
        )
    module, colon, function = name.partition(":")
    if not colon:
        close = nearest(name, MEANINGS)
        raise ConfigurationError(
            f"there is no metric called {name!r}",
            fix=(f"did you mean {close!r}? " if close else "")
            + f"known: {', '.join(MEANINGS)}, regex:PATTERN, module:function",
        )
    folder = folder.absolute()
    code = {"kind": "metric", "module": module, "function": function, "folder": str(folder)}
    return _loaded(
        ScoringProgram(
            code=json.dumps(code),
            name=f"the metric {name}",
            folder=folder,
            seconds=seconds,
            trusted=trusted,
        ),
        message=f"cannot import the metric {name!r}",
        fix=f"put {module}.py beside the YAML file in {folder}, or install it"
        + ("" if trusted else "; with `trusted: true` it may access everything that you may"),
    )


def _loaded(program: ScoringProgram, *, message: str, fix: str) -> ProgramMetric:
    try:
        facts = describe(program)
    except ScoringError as error:
        raise ConfigurationError(message, why=error.why, fix=fix) from error
    return ProgramMetric(program=program, source=base64.b64decode(facts.get("source", "")))
