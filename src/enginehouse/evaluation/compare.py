"""Compares two runs on the items that both asked. Reads nothing but their journals."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from enginehouse.core.errors import NoHeadlineError
from enginehouse.evaluation.ledger import CODES, TaskLedger, has_score
from enginehouse.evaluation.pairing import Reading, common_tasks, read_run, warnings
from enginehouse.evaluation.summary import why_no_headline
from enginehouse.results.comparison import (
    Compared,
    Comparison,
    MetricComparison,
    OutcomeCounts,
    TaskComparison,
    Verdict,
)
from enginehouse.statistics.intervals import Floats
from enginehouse.statistics.multiplicity import holm
from enginehouse.statistics.paired import compare_paired
from enginehouse.store.runs import Run
from enginehouse.tasks.base import Outcome

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A figure of two runs: values and weights of shape (2, items, repeats).

    A weight of 0 means that there is no value.
    """

    values: Floats
    weights: Floats


def compare_runs(a: Run, b: Run) -> Comparison:
    """Run B against run A: every task of both, paired by item and repeat.

    The same samples count as in the headline: failed and unscored ones are left out, here together
    with their partners; unparsable and truncated answers are not correct. Verdicts are at level
    0.05, with several tasks after Holm's correction. The same runs give the same result.

    Raises ConfigurationError for runs that cannot be paired (see `pairing.common_tasks`) and
    StoreError. Blocking: reads both journals.
    """
    one, other = read_run(a), read_run(b)
    names = common_tasks(one, other)
    tasks = [_compare_task(name, one, other) for name in names]
    tested = [t.headline.p_value for t in tasks if t.headline and t.headline.p_value is not None]
    corrected = iter(holm(tested))
    several = len(tested) > 1
    return Comparison(
        a=describe_run(one),
        b=describe_run(other),
        tasks=tuple(
            _judge(
                task,
                next(corrected),
                several=several,
                lower_is_better=lower_is_better(one.ledger.tasks[task.task]),
            )
            if task.headline and task.headline.p_value is not None
            else task
            for task in tasks
        ),
        correction=f"Holm, {len(tested)} tasks" if several else None,
        warnings=tuple(warnings(one, other, names)),
    )


def require_scores(comparison: Comparison) -> None:
    """Raise NoHeadlineError if a task of either run has no headline to compare."""
    without = [task for task in comparison.tasks if task.verdict is Verdict.NO_SCORE]
    if without:
        raise NoHeadlineError(
            f"nothing to compare for {', '.join(task.task for task in without)}",
            why="; ".join(task.words for task in without),
            fix="once the cause is fixed, `enginehouse resume RUN --retry-failed` asks the failed "
            "samples again, and `enginehouse rescore RUN` scores the unscored ones",
        )


def describe_run(reading: Reading) -> Compared:
    """Which run it is, and which model answered."""
    provenances = reading.provenances
    return Compared(
        run=reading.run.info.id,
        model=provenances[-1].model if provenances else reading.run.info.model,
    )


def headline_pairs(a: TaskLedger, b: TaskLedger) -> Pairs:
    """Which samples of a task are correct, in both runs.

    For a task that a harness measured by another scale: the measure that is its headline, if it
    has that of single samples.
    """
    metric = a.record.headline
    if a.is_measured and b.is_measured and metric in a.measures and metric in b.measures:
        return metric_pairs(metric, a, b)
    states = np.stack([a.state_table(), b.state_table()])
    correct = (states == CODES[Outcome.CORRECT]).astype(float)
    return Pairs(values=correct, weights=has_score(states).astype(float))


def metric_pairs(metric: str, a: TaskLedger, b: TaskLedger) -> Pairs:
    """A further metric that both runs have, by sample."""
    shape = a.state_table().shape
    columns = (a.measures[metric], b.measures[metric])
    return Pairs(
        values=np.stack([column.values.reshape(shape) for column in columns]),
        weights=np.stack([column.weights.reshape(shape) for column in columns]),
    )


def lower_is_better(task: TaskLedger) -> bool:
    """Whether its harness says that less is better."""
    work = task.record.harness
    figure = work.figure(task.record.headline) if work else None
    return figure is not None and figure.higher_is_better is False


def _compare_task(name: str, a: Reading, b: Reading) -> TaskComparison:
    """A task's figures; the verdict does not consider the p-value yet."""
    one, other = a.ledger.tasks[name], b.ledger.tasks[name]
    pairs = headline_pairs(one, other)
    why_not = "; ".join(
        f"{label} has no score: {why}"
        for label, reading in (("A", a), ("B", b))
        if (why := why_no_headline(reading.ledger.tasks[name], reading.spec.max_failed))
    )
    headline = None
    if not why_not:
        headline = compare_paired(pairs.values, pairs.weights)
        why_not = "" if headline else "no sample has a score in both runs"
    record = one.record
    return TaskComparison(
        task=name,
        version=record.version,
        headline_name=record.headline,
        items=record.items,
        samples_per_item=record.samples,
        subset=record.subset or other.record.subset,
        left_out=int((pairs.weights == 0).any(axis=0).sum()),
        failed=_counts(Outcome.FAILED, one, other),
        unscored=_counts(Outcome.UNSCORED, one, other),
        truncated=_counts(Outcome.TRUNCATED, one, other),
        unparsable=_counts(Outcome.UNPARSABLE, one, other),
        headline=headline,
        p_corrected=None,
        verdict=Verdict.TOO_FEW if headline else Verdict.NO_SCORE,
        words=f"too few items to compare ({headline.method})" if headline else why_not,
        metrics=tuple(_metrics(one, other)) if headline else (),
    )


def _counts(outcome: Outcome, a: TaskLedger, b: TaskLedger) -> OutcomeCounts:
    return OutcomeCounts(a=a.counts[CODES[outcome]], b=b.counts[CODES[outcome]])


def _metrics(a: TaskLedger, b: TaskLedger) -> list[MetricComparison]:
    metrics = []
    names = a.measures.keys() & b.measures.keys()
    if a.record.harness is not None:
        names -= {a.record.headline}  # it is the headline
    for name in sorted(names):
        pairs = metric_pairs(name, a, b)
        if (result := compare_paired(pairs.values, pairs.weights)) is not None:
            metrics.append(MetricComparison(metric=name, result=result))
    return metrics


def _judge(
    task: TaskComparison, p_value: float, *, several: bool, lower_is_better: bool
) -> TaskComparison:
    """The task with the verdict for its p-value, which is corrected for `several` tasks."""
    result = task.headline
    assert result is not None
    if p_value <= LEVEL:
        better = (result.difference > 0) is not lower_is_better
        verdict = Verdict.B_BETTER if better else Verdict.A_BETTER
        words = "B is better" if better else "A is better"
    elif result.detectable is None:
        verdict = Verdict.TOO_FEW
        words = "too few items: no difference, however large, could be expected to show"
    else:
        verdict = Verdict.NOT_SHOWN
        after = " after Holm's correction" if several and (result.p_value or 1) <= LEVEL else ""
        words = (
            f"no difference shown{after}; one of {100 * result.detectable:.1f} points or more "
            "would have been, with 80 % power"
        )
    return msgspec.structs.replace(task, p_corrected=p_value, verdict=verdict, words=words)
