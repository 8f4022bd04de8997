"""An evaluation's settings (EvaluationSpec) and the records of its journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from enginehouse.core.errors import ConfigurationError, EnginehouseError
from enginehouse.core.reasoning import ReasoningUse
from enginehouse.core.sampler import Provenance, SampleRequest, SampleResponse
from enginehouse.results.summary import HarnessExchange, HarnessWork
from enginehouse.tasks.base import Measure, Outcome
from enginehouse.tools import CallOutcome, CheckedCall, Step

JOURNAL_FORMAT = 1


class TaskSpec(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A task to evaluate; `limit` None takes every item.

    `harness` is whose task it is, unless it is our own; then `name` begins with it, as in
    "lm-eval:piqa", and `few_shot` and `arguments` are its settings there.

    Everything else that is None is the evaluation's own. With a limit the items are the first
    in a seeded order (see `plan.select`) instead of the file's: an unbiased sample, the same for
    every model under the same seed, and a smaller limit's items are among a larger one's.
    """

    name: str
    harness: str | None = None
    limit: int | None = None
    few_shot: int | None = None
    arguments: Mapping[str, Any] | None = None
    samples: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    system: str | None = None
    reasoning: ReasoningUse | None = None
    reasoning_end: str | None = None
    concurrency: int | None = None
    request_timeout: float | None = None
    max_retries: int | None = None

    def __post_init__(self) -> None:
        for message in _problems(self, of=f" of task {self.name}"):
            raise ConfigurationError(message)


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a million tokens cost, in US dollars: of prompts and of answers."""

    input: float
    output: float


class JudgeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the judge is sampled, for tasks that have one. `model` is what the user calls it."""

    model: str
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024


class EvaluationSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to evaluate and how to sample; raises ConfigurationError for invalid values.

    `samples` is how often each item is asked (log-likelihood tasks: always once). None in
    `max_tokens` and `stop` means the task's own; `system` replaces or adds the system message.
    `tool_steps` are the ways in which tasks with tools may ask for calls.
    Above the fraction `max_failed` of failed samples a task gets no headline. `concurrency` is
    the number of samples in flight; None leaves it to the sampler (at most 1,024). Without
    `prices` the report has no cost. `reasoning_end` is a text that ends the reasoning of an answer,
    besides the usual marks. `request_timeout` (in seconds, for each attempt) and `max_retries` None
    leave it to the sampler. A task's own settings replace these.
    """

    tasks: tuple[TaskSpec, ...]
    samples: int = 1
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    system: str | None = None
    max_failed: float = 0.01
    concurrency: int | None = None
    prices: Prices | None = None
    tool_steps: tuple[Step, ...] = tuple(Step)
    reasoning: ReasoningUse = ReasoningUse.STRIP
    reasoning_end: str | None = None
    request_timeout: float | None = None
    max_retries: int | None = None
    judge: JudgeSpec | None = None

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        checks = (
            (bool(names), "name at least one task"),
            (len(set(names)) == len(names), f"a task is named twice: {', '.join(names)}"),
            (0 <= self.min_p <= 1, "min_p must be in [0, 1]"),
            (0 <= self.max_failed <= 1, "max_failed is a fraction in [0, 1]"),
            (
                0 < len(self.tool_steps) == len(set(self.tool_steps)),
                "tool_steps must name at least one step, and each once",
            ),
        )
        for message in (*(m for fine, m in checks if not fine), *_problems(self)):
            raise ConfigurationError(message)

    def settings_of(self, name: str) -> TaskSpec:
        """The complete settings of a task: its own, and for the rest the evaluation's.

        Those of a task that is not named, because it is a part of a harness's group, are the
        evaluation's.
        """
        task = next((task for task in self.tasks if task.name == name), TaskSpec(name=name))
        own = {n: v for n in task.__struct_fields__ if (v := getattr(task, n)) is not None}
        common = {n: getattr(self, n) for n in _COMMON}
        return TaskSpec(**(common | own))

    @property
    def native(self) -> tuple[TaskSpec, ...]:
        """The tasks that are asked here."""
        return tuple(task for task in self.tasks if task.harness is None)

    @property
    def foreign(self) -> tuple[TaskSpec, ...]:
        """The tasks that harnesses ask and score."""
        return tuple(task for task in self.tasks if task.harness is not None)

    @property
    def most_in_flight(self) -> int | None:
        """The largest number of requests in flight of all tasks together; None is not bounded."""
        bounds = [task.concurrency or self.concurrency for task in self.tasks]
        return None if None in bounds else max(bound for bound in bounds if bound)

    def asking_alike(self) -> EvaluationSpec:
        """The same without what does not change the answers, and so may change on a resume."""
        tasks = tuple(msgspec.structs.replace(task, **_WITHOUT_EFFECT) for task in self.tasks)
        return msgspec.structs.replace(self, tasks=tasks, **_WITHOUT_EFFECT)


_WITHOUT_EFFECT: Final[dict[str, None]] = dict.fromkeys(
    ("concurrency", "request_timeout", "max_retries")
)
_COMMON: Final = tuple(
    name
    for name in TaskSpec.__struct_fields__
    if name in EvaluationSpec.__struct_fields__ and name != "name"
)


def _problems(settings: TaskSpec | EvaluationSpec, *, of: str = "") -> list[str]:
    """What is wrong with the settings that tasks may have, too; None is never wrong."""
    ranges: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("limit", lambda value: value >= 1, "at least 1"),
        ("samples", lambda value: value >= 1, "at least 1"),
        ("max_tokens", lambda value: value >= 1, "at least 1"),
        ("temperature", lambda value: value >= 0, "at least 0"),
        ("top_p", lambda value: 0 < value <= 1, "in (0, 1]"),
        ("top_k", lambda value: value >= 0, "at least 0 (0 is off)"),
        ("reasoning_end", bool, "a text that is not empty"),
        ("concurrency", lambda value: value >= 1, "at least 1"),
        ("request_timeout", lambda value: value > 0, "above 0"),
        ("max_retries", lambda value: value >= 0, "at least 0"),
    )
    return [
        f"{name}{of} must be {range_}"
        for name, is_valid, range_ in ranges
        if (value := getattr(settings, name, None)) is not None and not is_valid(value)
    ]


class HeaderRecord(msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="record"):
    """The first line."""

    format: int
    run: str
    created: datetime
    spec: EvaluationSpec


class ProvenanceRecord(
    msgspec.Struct, frozen=True, kw_only=True, tag="provenance", tag_field="record"
):
    """Who answers from here on; one per process that sampled for the run.

    `seeded` is false if the engine does not support seeds, so that none was sent.
    """

    id: int
    started: datetime
    provenance: Provenance
    seeded: bool


class JudgeRecord(msgspec.Struct, frozen=True, kw_only=True, tag="judge", tag_field="record"):
    """Who judges answers from here on; one per process that had a judge."""

    id: int
    started: datetime
    provenance: Provenance


class RepairRecord(msgspec.Struct, frozen=True, kw_only=True, tag="repair", tag_field="record"):
    """The journal's end was broken when it was opened: `size` bytes, now in `kept` beside it."""

    at: datetime
    size: int
    kept: str


class DatasetRecord(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="dataset", tag_field="record"
):
    """A task's data: `items` are evaluated `samples` times each, out of `full_size` (or unknown).

    `headline` says what "correct" means for the task. A further record of a task begins a new
    scoring: the scores before it no longer count, the answers do.

    A task with `harness` was asked and scored by one. Its record is written when it is done, before
    its samples; a group's is written after those of its parts, and has no items. A further record
    replaces the task with all its samples.
    """

    task: str
    version: int | str
    headline: str
    source: str
    licence: str
    digest: str
    items: int
    samples: int
    full_size: int | None
    subset: bool
    harness: HarnessWork | None = None


class Continuation(msgspec.Struct, frozen=True, kw_only=True):
    """Natural-log probabilities of a continuation's tokens (the prompt's last ones); their sum."""

    loglikelihood: float
    logprobs: tuple[float, ...]


class ToolAttempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request for calls; `outcome` is None if the engine does not support this step."""

    step: Step
    outcome: CallOutcome | None = None
    why: str | None = None


class ToolUse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of asking for calls: the step that gave it, and every attempt in order."""

    step: Step
    outcome: CallOutcome
    attempts: tuple[ToolAttempt, ...]
    calls: tuple[CheckedCall, ...] = ()


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a sample failed, or could not be scored: an error's class, stage and text.

    `status` is the HTTP status if there was one.
    """

    error: str
    stage: str
    message: str
    status: int | None = None

    @classmethod
    def of(cls, error: EnginehouseError) -> Failure:
        """The failure that `error` caused."""
        return cls(
            error=type(error).__name__,
            stage=error.stage,
            message=f"{error.message}: {error.why}" if error.why else error.message,
            status=getattr(error, "status", None),
        )


class SampleRecord(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="sample", tag_field="record"
):
    """A sample that was asked; written before it is scored. The latest of a key counts.

    The key is (task, position, repeat); `position` counts the evaluated items from 0. A written
    answer has one request and one response; a choice has one of each per continuation, with the
    prompt's log-probabilities reduced to `continuations`; tool calls have one of each per answered
    attempt, and their result in `tool_use`. `provenance` is a ProvenanceRecord's id. A sample of a
    harness has neither requests nor responses, but an `exchange`.
    """

    task: str
    item: str
    position: int
    repeat: int
    provenance: int
    requests: tuple[SampleRequest, ...]
    responses: tuple[SampleResponse, ...] = ()
    continuations: tuple[Continuation, ...] | None = None
    tool_use: ToolUse | None = None
    exchange: HarnessExchange | None = None
    failure: Failure | None = None


class HarnessEndRecord(
    msgspec.Struct, frozen=True, kw_only=True, tag="harness_end", tag_field="record"
):
    """A harness did not finish a task, which is run again when the run is resumed."""

    task: str
    at: datetime
    failure: Failure


class Judgement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the judge was asked about an answer, and its reply; none if asking it failed.

    `judge` is a JudgeRecord's id.
    """

    judge: int
    request: SampleRequest
    response: SampleResponse | None = None


class ReasoningCount(msgspec.Struct, frozen=True, kw_only=True):
    """The reasoning in a written answer, or beside it; `finished` unless the answer ended in it."""

    words: int
    finished: bool = True


class ScoreRecord(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="score", tag_field="record"
):
    """The score of the sample with the same key; the latest counts.

    `failure` says why an answer is unscored. `reasoning` is absent if the answer had none, and
    `judgement` if no judge was asked.
    """

    task: str
    item: str
    position: int
    repeat: int
    outcome: Outcome
    measures: Mapping[str, Measure] = {}
    answer: str | None = None
    failure: Failure | None = None
    reasoning: ReasoningCount | None = None
    judgement: Judgement | None = None


Record = (
    HeaderRecord
    | ProvenanceRecord
    | JudgeRecord
    | RepairRecord
    | DatasetRecord
    | SampleRecord
    | ScoreRecord
    | HarnessEndRecord
)
