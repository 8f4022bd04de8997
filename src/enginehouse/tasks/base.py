"""What a task is. Each benchmark is a file in this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from enginehouse.core.errors import TaskError
from enginehouse.core.messages import ChatPrompt
from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.tools.results import CheckedCall


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One question. `id` is unique within the data set and stable between loads; `data` is JSON."""

    id: str
    data: dict[str, Any]


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """A task's items and where they came from.

    `digest` is the SHA-256 of the source's bytes (for generated data: of the items as JSON).
    `full_size` is the number of items of the whole benchmark; with fewer items (`is_subset`)
    every report says so.
    """

    items: Sequence[Item]
    source: str
    licence: str
    digest: str
    full_size: int | None

    @property
    def is_subset(self) -> bool:
        """Whether items are missing, or may be missing."""
        return self.full_size is None or len(self.items) < self.full_size


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag="generate", tag_field="ask"):
    """Ask for a written answer; the user may override max_tokens and stop."""

    prompt: ChatPrompt
    max_tokens: int
    stop: tuple[str, ...] = ()


class Choose(msgspec.Struct, frozen=True, kw_only=True, tag="choose", tag_field="ask"):
    """Ask for the log-likelihood of each continuation of `context`."""

    context: str
    continuations: tuple[str, ...]


class CallTools(msgspec.Struct, frozen=True, kw_only=True, tag="call", tag_field="ask"):
    """Ask for calls of tools; `choice` as in SampleRequest, at most `max_calls` in one answer."""

    prompt: ChatPrompt
    tools: tuple[ToolDefinition, ...]
    choice: str
    max_calls: int
    max_tokens: int


Question = Generate | Choose | CallTools


class Outcome(StrEnum):
    """The outcome of a sample. The last four are given by the runner, not by tasks.

    `unscored`: there is an answer, and scoring it failed or took too long. `measured`: a harness
    scored it, by a scale that knows no right and wrong.
    """

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    TRUNCATED = "truncated"
    UNSCORED = "unscored"
    FAILED = "failed"
    MEASURED = "measured"


class Measure(msgspec.Struct, frozen=True):
    """One sample's share of a metric, which is Σ value / Σ weight over the samples."""

    value: float
    weight: float = 1.0


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A sample's outcome, its measures by metric name, and the answer as it was read."""

    outcome: Outcome
    measures: Mapping[str, Measure] = msgspec.field(default_factory=dict)
    answer: str | None = None


class ScoringProgram(msgspec.Struct, frozen=True, kw_only=True):
    """Scoring by code that is not our own, which runs in a process of its own.

    `code` is what `payloads/score_answers.py` loads, as JSON; `name` is used in errors, and
    `folder` is a folder that it may read. One answer may take `seconds`. `alone`: every answer
    gets a fresh process, because this code executes answers. `trusted`: the user lets it do
    whatever this process may do.
    """

    code: str
    name: str
    folder: Path | None = None
    seconds: float = 10.0
    alone: bool = False
    trusted: bool = False


class ScoringCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a scoring program is asked about one answer; `arguments` are JSON."""

    program: ScoringProgram
    arguments: Mapping[str, Any]
    answer: str | None = None


class JudgeCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge, another model, is asked about one answer; the task reads its reply."""

    prompt: ChatPrompt


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `enginehouse tasks` shows.

    `headline` names what "correct" means; `metrics` are the further ones in Score.measures.
    `kind` is "generate", "choose" or "call", as `ask` returns Generate, Choose or CallTools.
    `needs` says what must be installed or given first, "" if nothing. `version` changes whenever
    prompts or scoring change, so that figures of different versions are never compared.
    """

    name: str
    version: int
    description: str
    kind: str
    headline: str
    metrics: tuple[str, ...]
    licence: str
    size: int | None
    source: str
    needs: str = ""


class Task(Protocol):
    """A benchmark. Loading and scoring are deterministic; everything random takes a seed.

    A task inherits from this class and implements the scoring of what it asks for.
    """

    @property
    def info(self) -> TaskInfo:
        """Facts about the task; reading them loads no data."""
        ...

    def load(self, *, data: str | None, seed: int) -> Dataset:
        """All items, from `data` (a user's file or a hub data set) or the task's own source.

        Raises DataError, saying what to do, if the data is not available. Blocking.
        """
        ...

    def ask(self, item: Item) -> Question:
        """What to ask about `item`."""
        ...

    def score_text(self, item: Item, text: str) -> Score | ScoringCall | JudgeCall:
        """Score a written answer, or say which program or what question to a judge does.

        `text` comes without the model's reasoning, unless the user wants that to be scored, too.
        Runs in the event loop, so it must be fast and take linear time. Of a truncated answer only
        the measures' weights are used.
        """
        del item, text
        raise TaskError(f"task {self.info.name} does not ask for written answers")

    def score_choice(self, item: Item, loglikelihoods: Sequence[float]) -> Score:
        """Score from the summed natural-log probabilities, in the order of the continuations."""
        del item, loglikelihoods
        raise TaskError(f"task {self.info.name} does not ask for choices")


def implements(task: object, member: str) -> bool:
    """Whether a task has a member of its own, beside what it inherits from `Task`."""
    own = getattr(type(task), member, None) or getattr(task, member, None)
    return own is not None and own is not getattr(Task, member, None)


@runtime_checkable
class ProgramTask(Task, Protocol):
    """A task whose answers may be scored by code that is not our own."""

    @property
    def foreign_code(self) -> ScoringProgram | None:
        """The program that runs other people's code on answers, if any."""
        ...


@runtime_checkable
class JudgedTask(Task, Protocol):
    """A task whose answers may be scored by another model."""

    @property
    def is_judged(self) -> bool:
        """Whether `score_text` returns a JudgeCall."""
        ...

    def score_judgement(self, item: Item, judgement: str) -> Score:
        """Score by what the judge wrote, its reasoning left out.

        Raises ScoringError if that is no verdict: the answer is then unscored, not wrong.
        """
        ...


def is_judged(task: Task) -> bool:
    """Whether another model scores the task's answers."""
    return isinstance(task, JudgedTask) and task.is_judged


@runtime_checkable
class ToolTask(Task, Protocol):
    """A task that asks for calls of tools."""

    def score_calls(self, item: Item, calls: Sequence[CheckedCall]) -> Score:
        """Score valid calls. Any other answer is not correct and is not passed in."""
        ...
