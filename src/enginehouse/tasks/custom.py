"""A user's own task: a YAML file that names the data, the prompt and the metric."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
from pydantic import Field, ValidationError, field_validator, model_validator

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.strict_model import StrictModel, explain
from enginehouse.core.strict_yaml import parse_mapping
from enginehouse.core.system_errors import advice
from enginehouse.tasks.base import (
    Choose,
    Dataset,
    Generate,
    Item,
    JudgeCall,
    Score,
    ScoringCall,
    ScoringProgram,
    Task,
    TaskInfo,
)
from enginehouse.tasks.data import Row, read_rows, user_source
from enginehouse.tasks.judging import PROMPT, JudgeDefinition, Judging
from enginehouse.tasks.metrics import (
    CHOICE,
    JUDGE,
    MEANINGS,
    REGEX,
    ProgramMetric,
    TextMetric,
    load_metric,
)
from enginehouse.tasks.multiple_choice import score_loglikelihoods
from enginehouse.tasks.numbers import right_number
from enginehouse.tasks.templates import Template

_SCORING = 2  # raised whenever one of our metrics changes how it scores

Text = Annotated[str, Field(min_length=1)]


class Definition(StrictModel):
    """The keys of a task's YAML file."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """What the task is called in reports."""
    data: Text
    """A JSONL, JSON or CSV file, relative to the YAML file, or hf:owner/name:file."""
    prompt: Text
    """The user's turn, a Jinja template over the record's fields; with `choice`, the context."""
    description: str = ""
    """One line for the list of tasks."""
    licence: str = "not stated"
    """The data's licence."""
    id: str | None = None
    """The field that names an item; without it, its place in the file, from 0."""
    system: Text | None = None
    """The system turn, a Jinja template."""
    metric: Text = "exact_match"
    """exact_match, contains, number, regex:PATTERN, judge, choice, or module:function."""
    judge: JudgeDefinition | None = None
    """With the metric `judge`: what the judge is asked, and how its verdict reads."""
    answer: Text | None = None
    """The field with the right answer, or a Jinja template for it."""
    choices: Text | None = None
    """With `choice`: the field with the list of choices, each asked behind a space."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """The longest answer, in tokens."""
    stop: tuple[Text, ...] = ()
    """Texts that end the answer; one may stand alone, as in stop: "\\n"."""
    trusted: bool = False
    """Whether a metric that is a function may access everything that you may."""
    scoring_timeout: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Seconds that scoring one answer may take, for regex:PATTERN and module:function."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Definition:
        function = ":" in self.metric and not self.metric.startswith(REGEX)
        if self.judge is not None and self.metric != JUDGE:
            raise ValueError("'judge' goes with the metric 'judge' only")
        if self.answer is None and not function and self.metric != JUDGE:
            raise ValueError(f"the metric {self.metric!r} needs 'answer'")
        if self.metric == CHOICE:
            if self.choices is None:
                raise ValueError("the metric 'choice' needs 'choices'")
            if self.system is not None or self.stop:
                raise ValueError(
                    "the metric 'choice' asks for no text, so 'system' and 'stop' must be left out"
                )
        elif self.choices is not None:
            raise ValueError("'choices' goes with the metric 'choice' only")
        return self


def load_custom(path: Path) -> CustomTask:
    """The task in a YAML file; its metric is imported, its data are not read.

    Raises ConfigurationError naming the file, the key, and the nearest key for an unknown one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the task {path}",
            why=error.strerror,
            fix=advice(
                error, otherwise="check the path; in a configuration it is relative to that file"
            ),
        ) from error
    try:
        definition = Definition.model_validate(parse_mapping(content, path=path))
    except ValidationError as error:
        problems = explain(error, Definition)
        raise ConfigurationError(f"{path}: {'; '.join(problems)}") from error
    metric = None
    if definition.metric not in (CHOICE, JUDGE):
        metric = load_metric(
            definition.metric,
            folder=path.parent,
            trusted=definition.trusted,
            seconds=definition.scoring_timeout,
        )
    source = metric.source if isinstance(metric, ProgramMetric) else b""
    if definition.metric == JUDGE:
        source = PROMPT.encode()
    # Whatever changes prompt or scoring changes the version.
    digest = hashlib.sha256(content + b"\0" + source + b"\0%d" % _SCORING)
    version = int.from_bytes(digest.digest()[:4]) >> 1
    return CustomTask(definition, path=path, metric=metric, version=version)


class CustomTask(Task):
    """The task that a YAML file defines."""

    def __init__(
        self,
        definition: Definition,
        *,
        path: Path,
        metric: TextMetric | ProgramMetric | None,
        version: int,
    ) -> None:
        self._definition = definition
        self._path = path
        self._metric = metric
        self._version = version
        self._prompt = Template(definition.prompt, origin=f"{path}: prompt")
        self._system = (
            Template(definition.system, origin=f"{path}: system") if definition.system else None
        )
        self._judging = None
        if definition.metric == JUDGE:
            self._judging = Judging(definition.judge or JudgeDefinition(), origin=str(path))
        self._answer = (
            Template(definition.answer, origin=f"{path}: answer")
            if definition.answer and re.search(r"\{\{|\{%", definition.answer)
            else None
        )

    @property
    def info(self) -> TaskInfo:
        """Facts about the task; reading them loads no data."""
        metric = self._definition.metric
        return TaskInfo(
            name=self._definition.name,
            version=self._version,
            description=self._definition.description,
            kind="choose" if metric == CHOICE else "generate",
            headline=MEANINGS.get(metric, metric),
            metrics=("acc",) if metric == CHOICE else (),
            licence=self._definition.licence,
            size=None,
            source=self._definition.data,
        )

    @property
    def foreign_code(self) -> ScoringProgram | None:
        """The user's function, if the metric is one."""
        if self._definition.metric.startswith(REGEX):
            return None
        return self._metric.program if isinstance(self._metric, ProgramMetric) else None

    def load(self, *, data: str | None, seed: int) -> Dataset:  # noqa: ARG002  nothing is drawn
        """The records of the file, every prompt and answer tried once.

        Raises DataError naming the file and line, or the template's line and the item, and
        ConfigurationError for a template with {field} in place of {{ field }}. Blocking.
        """
        if data is None:
            source = user_source(self._definition.data, base=self._path.parent)
        else:
            source = user_source(data)
        items: dict[str, Item] = {}
        for row in read_rows(source):
            item = Item(id=self._id(row), data=msgspec.to_builtins(row.fields))
            if item.id in items:
                raise row.error(f"the id {item.id!r} occurs more than once")
            self._require_whole(item, row)
            if self.is_judged:
                self.score_text(item, "an answer")  # the judge's templates can be filled in
            items[item.id] = item
        return source.dataset(
            tuple(items.values()), licence=self._definition.licence, full_size=len(items)
        )

    def ask(self, item: Item) -> Generate | Choose:
        """The filled-in prompt."""
        definition = self._definition
        prompt = self._prompt.render(item.data, item=item.id)
        if definition.choices:
            choices = item.data[definition.choices]
            return Choose(context=prompt, continuations=tuple(f" {c}" for c in choices))
        turns = [Message("user", prompt)]
        if self._system:
            turns.insert(0, Message("system", self._system.render(item.data, item=item.id)))
        return Generate(
            prompt=ChatPrompt(tuple(turns)),
            max_tokens=definition.max_tokens,
            stop=definition.stop,
        )

    @property
    def is_judged(self) -> bool:
        """Whether the metric is `judge`."""
        return self._judging is not None

    def score_judgement(self, item: Item, judgement: str) -> Score:  # noqa: ARG002
        """Score by the judge's verdict. Raises ScoringError if it gave none."""
        assert self._judging is not None
        return self._judging.read(judgement)

    def score_text(self, item: Item, text: str) -> Score | ScoringCall | JudgeCall:
        """Score by the metric; a program applies a pattern or a function, and a judge is asked."""
        if self._judging is not None:
            return self._judging.call(
                item.data,
                item=item.id,
                asked=self._prompt.render(item.data, item=item.id),
                response=text,
                reference=self._right(item) if self._definition.answer else None,
            )
        assert self._metric is not None
        if not isinstance(self._metric, ProgramMetric):
            return self._metric(text, self._right(item))
        arguments: dict[str, Any] = {"text": text}
        if self._definition.metric.startswith(REGEX):
            arguments["answer"] = self._right(item)
        else:
            arguments["item"] = item.data
        return ScoringCall(program=self._metric.program, arguments=arguments)

    def score_choice(self, item: Item, loglikelihoods: Sequence[float]) -> Score:
        """Correct by acc_norm; the measure `acc` beside it."""
        assert self._definition.choices is not None
        choices = item.data[self._definition.choices]
        gold = _position(self._right(item), choices)
        assert gold is not None
        return score_loglikelihoods(loglikelihoods, choices=choices, gold=gold)

    def _id(self, row: Row) -> str:
        if self._definition.id is None:
            return str(row.index)
        value = row.value(self._definition.id)
        if not isinstance(value, str | int) or value == "":
            raise row.error(f"the id {self._definition.id!r} must be a text or a whole number")
        return str(value)

    def _require_whole(self, item: Item, row: Row) -> None:
        """Raise DataError unless the item makes a prompt and has an answer that can be scored."""
        definition = self._definition
        choices = list(row.texts(definition.choices)) if definition.choices else []
        if definition.answer and not self._answer:
            given = row.value(definition.answer)
            if not isinstance(given, str | int | float):
                raise row.error(f"{definition.answer!r} must be a text or a number, got {given!r}")
        fields = row.fields.keys() - {definition.answer}
        for template in filter(None, (self._prompt, self._system, self._answer)):
            template.require_no_braces(fields)
        asked = self.ask(item)
        if isinstance(asked, Choose) and not asked.context.strip():
            raise row.error(
                "the context is empty: the choices' log-likelihoods need some text before them",
                fix="give 'prompt' at least a word, such as 'Answer:'",
            )
        if isinstance(asked, Generate) and not asked.prompt.messages[-1].content.strip():
            raise row.error("the prompt is empty")
        if definition.answer is None:
            return
        right = self._right(item)
        if definition.choices and _position(right, choices) is None:
            raise row.error(f"the answer {right!r} is not a choice, nor the place or letter of one")
        if definition.metric == "number" and right_number(right) is None:
            raise row.error(f"the answer {right!r} has no number in it")
        if not right.strip():
            raise row.error("the answer is empty")

    def _right(self, item: Item) -> str:
        if self._answer:
            return self._answer.render(item.data, item=item.id)
        assert self._definition.answer is not None
        return _plain(item.data[self._definition.answer])


def _plain(value: Any) -> str:
    """A field as text; a float as people write it, 0.00005 rather than 5e-05."""
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)


def _position(answer: str, choices: Sequence[str]) -> int | None:
    """Where the answer is: a choice's own text, its place from 0, or its letter from A."""
    if answer in choices:
        return choices.index(answer)
    if re.fullmatch(r"[0-9]{1,4}", answer):
        place = int(answer)
    elif len(answer) == 1 and answer in string.ascii_uppercase:
        place = string.ascii_uppercase.index(answer)
    else:
        return None
    return place if place < len(choices) else None
