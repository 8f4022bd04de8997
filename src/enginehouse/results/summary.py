"""A run's results and progress, as plain data (every struct here is JSON)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from enginehouse.core.incidents import Incident
from enginehouse.core.sampler import Provenance, SampleRequest, SampleResponse
from enginehouse.statistics.intervals import Interval


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A measured value; `interval` is None if too little was measured.

    `n` counts the samples that it was measured on, for figures at k the items; None in files that
    an earlier version wrote.
    """

    value: float
    interval: Interval | None
    n: int | None = None


class AtK(msgspec.Struct, frozen=True, kw_only=True):
    """What k samples of each item give, estimated from all its samples that have a score.

    `pass_at_k` is the probability that at least one of k is correct; `mean_at_k` the mean over
    items of the share of correct ones among the first k; `best_at_k` has, for each further metric,
    the expected greatest value of k (that of "correct" is pass@k). Only `items` of them had k such
    samples, `left_out` had fewer. None where no item had.
    """

    k: int
    items: int
    left_out: int
    pass_at_k: Figure | None
    mean_at_k: Figure | None
    best_at_k: Mapping[str, Figure]


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """The reasoning in a task's written answers, or beside them.

    `answers` had some, `mean_words` of it on average; `unfinished` of them ended before it did.
    `scored` says whether the reasoning was scored with the answers.
    """

    answers: int
    mean_words: float
    unfinished: int
    scored: bool


class HarnessFigure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A figure that a harness computed, with its own standard error where it states one."""

    name: str
    value: float
    standard_error: float | None = None
    higher_is_better: bool | None = None


class HarnessWork(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a harness reported of one task.

    `figures` are its own; the task's headline is that of the figure with the same name. `digest` is
    that of the task's configuration. `parts` are the tasks that a group consists of; a part has the
    group's name in `part_of`, as the run asks for it. `requests` were answered by the engine
    within `seconds`, with the tokens that it stated, and `replayed` more from what an earlier try
    had recorded; all are counted in the task that the run asks for. Of its samples, `truncated`
    have an answer that ended at the token limit, and `shortened` a prompt of which the harness cut
    off the beginning.
    """

    name: str
    version: str
    figures: tuple[HarnessFigure, ...]
    parts: tuple[str, ...] = ()
    part_of: str | None = None
    requests: int = 0
    replayed: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    truncated: int = 0
    shortened: int = 0

    def figure(self, name: str) -> HarnessFigure | None:
        """The figure of that name; None if there is none."""
        return next((figure for figure in self.figures if figure.name == name), None)


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """One task's result.

    `outcomes` counts correct, wrong, unparsable, truncated, unscored, failed; what is missing to
    `samples` was not asked or scored (the run is incomplete). `headline` is
    correct / (all - unscored - failed), named `headline_name`; it is None for the reason in
    `no_headline`. `metrics` are Σ value / Σ weight over the same samples. `subset` is true unless
    every item of the benchmark (`full_size`, None if unknown) was evaluated. `at_k` is empty
    without a headline. `reasoning` is absent if no answer had any. `settings` are the task's own
    sampling parameters, those that differ from the evaluation's; absent if there are none. `judge`
    is the model that scored the answers; absent for tasks without one.

    `harness` is what another project's harness reported of a task of its own; absent for native
    tasks. There, the headline is computed from the samples where each of them has an outcome or a
    measure of the headline's name, with an interval; otherwise it is the harness's own figure.
    """

    task: str
    version: int | str
    headline_name: str
    headline: Figure | None
    no_headline: str | None
    metrics: Mapping[str, Figure]
    outcomes: Mapping[str, int]
    samples: int
    items: int
    samples_per_item: int
    full_size: int | None
    subset: bool
    source: str
    licence: str
    digest: str
    at_k: tuple[AtK, ...] = ()
    reasoning: Reasoning | msgspec.UnsetType = msgspec.UNSET
    settings: Mapping[str, float | int | str] | msgspec.UnsetType = msgspec.UNSET
    judge: str | msgspec.UnsetType = msgspec.UNSET
    harness: HarnessWork | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_group(self) -> bool:
        """Whether its samples are those of its parts; it may have no figure of its own."""
        return isinstance(self.harness, HarnessWork) and not self.samples

    @property
    def done(self) -> int:
        """Samples with an outcome."""
        return sum(self.outcomes.values())


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """The server's work during sampling (`wall_seconds`, without pauses between resumes)."""

    wall_seconds: float
    requests: int
    prompt_tokens: int
    generated_tokens: int
    requests_per_second: float | None
    prompt_tokens_per_second: float | None
    generated_tokens_per_second: float | None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of the answered requests' tokens in US dollars, at the given prices."""

    input: float
    output: float
    total: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run's result. `provenance` lists every different one that answered, in order.

    `incidents`: our own servers that died while they worked for it. `cost` is absent if no prices
    were given. `judges` lists who scored answers; absent if nobody else did.
    """

    run: str
    folder: str
    model: str
    complete: bool
    seed: int
    temperature: float
    tasks: tuple[TaskReport, ...]
    throughput: Throughput
    provenance: tuple[Provenance, ...]
    notes: tuple[str, ...]
    incidents: tuple[Incident, ...] = ()
    cost: Cost | msgspec.UnsetType = msgspec.UNSET
    judges: tuple[Provenance, ...] | msgspec.UnsetType = msgspec.UNSET


class TaskProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far one task is; `outcomes` sum to `done`, but for a task that a harness still runs.

    `total` is None until it is known, for a harness's task.
    """

    task: str
    done: int
    total: int | None
    outcomes: Mapping[str, int]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is. Tokens and times are those since this process began to sample.

    `requests` are those answered since then; a sample is done when all of its own are. None where
    every sample takes one. `tokens_per_second` and `seconds_left` are None until something has been
    measured.
    """

    tasks: tuple[TaskProgress, ...]
    elapsed: float
    generated_tokens: int
    tokens_per_second: float | None
    seconds_left: float | None
    requests: int | None = None

    @property
    def done(self) -> int:
        """Samples with an outcome, over all tasks."""
        return sum(task.done for task in self.tasks)

    @property
    def total(self) -> int:
        """Samples planned, over all tasks, as far as that is known."""
        return sum(task.total or 0 for task in self.tasks)

    @property
    def failed(self) -> int:
        """Samples that failed, over all tasks."""
        return sum(task.outcomes.get("failed", 0) for task in self.tasks)

    @property
    def unscored(self) -> int:
        """Answers that could not be scored, over all tasks."""
        return sum(task.outcomes.get("unscored", 0) for task in self.tasks)


class HarnessExchange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a harness recorded of a sample, for people to read; `target` is the right answer."""

    prompt: str = ""
    answer: str | None = None
    target: str | None = None


class SampleView(msgspec.Struct, frozen=True, kw_only=True):
    """One sample of the journal; `number` counts from 1 through the whole run.

    `outcome` is None while it is unscored. `loglikelihoods` are those of a choice's
    continuations, None for a written answer. `tool_use` has a line for every attempt to get a tool
    call and for every call that resulted from it. `failure` says why the sample failed or is
    unscored, as "Class (stage): message". What a judge was asked about the answer, and its reply,
    are None where no judge was. A harness's sample has no requests, but an `exchange`.
    """

    number: int
    total: int
    task: str
    item: str
    repeat: int
    requests: tuple[SampleRequest, ...]
    responses: tuple[SampleResponse, ...]
    loglikelihoods: tuple[float, ...] | None
    outcome: str | None
    answer: str | None
    measures: Mapping[str, float]
    failure: str | None
    tool_use: tuple[str, ...] = ()
    judge_request: SampleRequest | None = None
    judge_response: SampleResponse | None = None
    exchange: HarnessExchange | None = None
