"""The metrics of a user's task: by name, by regular expression, or a function of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec

from enginehouse.core.errors import ConfigurationError, TaskError, nearest
from enginehouse.tasks.base import Measure, Outcome, Score
from enginehouse.tasks.numbers import final_number, right_number, written

REGEX: Final = "regex:"
CHOICE: Final = "choice"
MEANINGS: Final = {
    "exact_match": "the text is the answer, white space at both ends apart",
    "contains": "the answer occurs in the text, in the same case",
    "number": "the number marked #### or boxed, else the last number, equals the answer",
    CHOICE: "acc_norm: the right choice has the highest log-likelihood per character",
}

Judge = Callable[[str, str], Score]
"""Scores (text, answer)."""


class UserMetric(msgspec.Struct, frozen=True, kw_only=True):
    """A user's `function(text, item)`; `source` is the bytes of its module."""

    name: str
    function: Callable[[str, dict[str, Any]], Any]
    source: bytes

    def score(self, text: str, fields: dict[str, Any], *, task: str, item: str) -> Score:
        """Call it. Raises TaskError naming task, item and function for all that it does wrong.

        It returns a bool; a number from 0 to 1, correct at 1 (the measure `score`); a mapping
        with `correct` as one of these, the other entries being measures; or None: unparsable.
        """
        try:
            result = self.function(text, fields)
        except Exception as error:
            raise self._error(
                f"raised {type(error).__name__}: {error}", task=task, item=item
            ) from error
        measures: dict[str, Any] = {}
        if isinstance(result, Mapping):
            if "correct" not in result:
                raise self._error("returned a mapping without 'correct'", task=task, item=item)
            measures = {str(k): v for k, v in result.items() if k != "correct"}
            result = result["correct"]
        elif not isinstance(result, bool) and result is not None:
            measures = {"score": result}
        numbers = {name: _number(value) for name, value in measures.items()}
        correct = None if result is None else _number(result)
        wrong = [name for name, value in numbers.items() if value is None]
        if wrong:
            raise self._error(
                f"returned {measures[wrong[0]]!r} for {wrong[0]!r}, which is no finite number",
                task=task,
                item=item,
            )
        if result is not None and (correct is None or not 0 <= correct <= 1):
            raise self._error(
                f"returned {result!r}, which is neither a bool nor a number from 0 to 1",
                task=task,
                item=item,
            )
        return Score(
            outcome=_outcome(correct),
            measures={name: Measure(value) for name, value in numbers.items() if value is not None},
        )

    def _error(self, what: str, *, task: str, item: str) -> TaskError:
        return TaskError(
            f"task {task}, item {item!r}: the metric {self.name} {what}",
            fix="return a bool, a number from 0 to 1, or a mapping with 'correct'",
        )


def _number(value: Any) -> float | None:
    value = value.item() if hasattr(value, "item") else value  # NumPy's scalars
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _outcome(correct: float | None) -> Outcome:
    if correct is None:
        return Outcome.UNPARSABLE
    return Outcome.CORRECT if correct == 1 else Outcome.WRONG


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


def _matching(pattern: re.Pattern[str]) -> Judge:
    def judge(text: str, answer: str) -> Score:
        matches = list(pattern.finditer(text))
        if not matches:
            return Score(outcome=Outcome.UNPARSABLE)
        groups = [group for group in matches[-1].groups() if group is not None]
        found = (groups or [matches[-1][0]])[0].strip()
        return Score(outcome=_outcome(found == answer.strip()), answer=found)

    return judge


_JUDGES: Final[Mapping[str, Judge]] = {
    "exact_match": _exact_match,
    "contains": _contains,
    "number": _same_number,
}


def load_metric(name: str, *, folder: Path) -> Judge | UserMetric:
    """The metric called `name` (not "choice"), a module beside the YAML file coming first.

    Raises ConfigurationError for an unknown name, a bad pattern, and what cannot be imported.
    """
    if name in _JUDGES:
        return _JUDGES[name]
    if name.startswith(REGEX):
        try:
            return _matching(re.compile(name.removeprefix(REGEX)))
        except re.error as error:
            raise ConfigurationError(
                f"metric {name!r} is no regular expression", why=str(error)
            ) from error
    module, colon, function = name.partition(":")
    if not colon:
        close = nearest(name, MEANINGS)
        raise ConfigurationError(
            f"there is no metric called {name!r}",
            fix=(f"did you mean {close!r}? " if close else "")
            + f"known: {', '.join(MEANINGS)}, regex:PATTERN, module:function",
        )
    try:
        found = _import(module, folder=folder)
        called = getattr(found, function)
    except Exception as error:
        raise ConfigurationError(
            f"cannot import the metric {name!r}",
            why=f"{type(error).__name__}: {error}",
            fix=f"put {module}.py beside the YAML file in {folder}, or install it",
        ) from error
    if not callable(called):
        raise ConfigurationError(f"the metric {name!r} is no function")
    file = getattr(found, "__file__", None)
    return UserMetric(name=name, function=called, source=Path(file).read_bytes() if file else b"")


def _import(name: str, *, folder: Path) -> ModuleType:
    file = folder.joinpath(*name.split(".")).with_suffix(".py")
    if not file.is_file():
        return importlib.import_module(name)
    # Two folders may each have a metric.py: each gets a name of its own.
    unique = f"enginehouse_metric_{abs(hash(file.resolve())):x}_{name.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(unique, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    sys.path.insert(0, str(folder))  # so that it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    finally:
        sys.path.remove(str(folder))
    return module
