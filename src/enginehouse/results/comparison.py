"""The comparison of two runs, as plain data (every struct here is JSON)."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from enginehouse.statistics.paired import PairedResult


class Verdict(StrEnum):
    """What a task's headline says about two runs.

    `not_shown` means neither equal nor different: `detectable` says what would have been seen.
    """

    B_BETTER = "b_better"
    A_BETTER = "a_better"
    NOT_SHOWN = "not_shown"
    TOO_FEW = "too_few"
    NO_SCORE = "no_score"


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two runs."""

    run: str
    model: str


class OutcomeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many of a task's samples had an outcome, in each run."""

    a: int
    b: int


class MetricComparison(msgspec.Struct, frozen=True, kw_only=True):
    """A further metric; in `result` the first is A, the second B. Its p-value is not corrected."""

    metric: str
    result: PairedResult


class TaskComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One task, measured in both runs on the same items.

    A pair is the same item and repeat in both, if both have a score; `left_out` counts the
    others. `headline` compares correct / pairs (A first, B second), `p_corrected` is its p-value
    after Holm's correction over the tasks. Both are None for the reason in `words` if a run has no
    headline. `words` is the verdict in words. `failed`, `unscored`, `truncated` and `unparsable`
    count samples.
    """

    task: str
    version: int | str
    headline_name: str
    items: int
    samples_per_item: int
    subset: bool
    left_out: int
    failed: OutcomeCounts
    unscored: OutcomeCounts
    truncated: OutcomeCounts
    unparsable: OutcomeCounts
    headline: PairedResult | None
    p_corrected: float | None
    verdict: Verdict
    words: str
    metrics: tuple[MetricComparison, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Run B against run A; every difference is B - A.

    `warnings` name what besides the model differs or is not known to be the same. `correction` is
    "Holm, n tasks", None for one task.
    """

    a: Compared
    b: Compared
    tasks: tuple[TaskComparison, ...]
    correction: str | None
    warnings: tuple[str, ...]
