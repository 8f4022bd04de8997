"""Compares two runs on the items that both asked. Reads nothing but their journals."""

from __future__ import annotations

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
from enginehouse.statistics.multiplicity import holm
from enginehouse.statistics.paired import PairedResult, compare_paired
from enginehouse.store.runs import Run
from enginehouse.tasks.base import Outcome

LEVEL = 0.05


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
        a=_compared(one),
        b=_compared(other),
        tasks=tuple(
            _judge(task, next(corrected), several=several)
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


def _compared(reading: Reading) -> Compared:
    provenances = reading.provenances
    model = provenances[-1].model if provenances else reading.run.info.model
    return Compared(run=reading.run.info.id, model=model)


def _compare_task(name: str, a: Reading, b: Reading) -> TaskComparison:
    """A task's figures, with the verdict as far as it needs no p-value."""
    one, other = a.ledger.tasks[name], b.ledger.tasks[name]
    states = np.stack([one.state_table(), other.state_table()])
    valid = has_score(states)
    why_not = "; ".join(
        f"{label} has no score: {why}"
        for label, reading in (("A", a), ("B", b))
        if (why := why_no_headline(reading.ledger.tasks[name], reading.spec.max_failed))
    )
    headline = None
    if not why_not:
        correct = (states == CODES[Outcome.CORRECT]).astype(float)
        headline = compare_paired(correct, valid.astype(float))
        why_not = "" if headline else "no sample has a score in both runs"
    record = one.record
    return TaskComparison(
        task=name,
        version=record.version,
        headline_name=record.headline,
        items=record.items,
        samples_per_item=record.samples,
        subset=record.subset or other.record.subset,
        left_out=int((~valid.all(axis=0)).sum()),
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
    found = []
    shape = a.state_table().shape
    for name in sorted(a.measures.keys() & b.measures.keys()):
        columns = (a.measures[name], b.measures[name])
        values = np.stack([column.values.reshape(shape) for column in columns])
        weights = np.stack([column.weights.reshape(shape) for column in columns])
        if (result := compare_paired(values, weights)) is not None:
            found.append(MetricComparison(metric=name, result=result))
    return found


def _judge(task: TaskComparison, p_value: float, *, several: bool) -> TaskComparison:
    result = task.headline
    assert result is not None
    verdict = _verdict(result, p_value)
    return msgspec.structs.replace(
        task,
        p_corrected=p_value,
        verdict=verdict,
        words=_words(verdict, result, corrected=several and (result.p_value or 1) <= LEVEL),
    )


def _verdict(result: PairedResult, p_value: float) -> Verdict:
    if p_value <= LEVEL:
        return Verdict.B_BETTER if result.difference > 0 else Verdict.A_BETTER
    return Verdict.TOO_FEW if result.detectable is None else Verdict.NOT_SHOWN


def _words(verdict: Verdict, result: PairedResult, *, corrected: bool) -> str:
    if verdict in (Verdict.A_BETTER, Verdict.B_BETTER):
        return "B is better" if verdict is Verdict.B_BETTER else "A is better"
    if verdict is Verdict.TOO_FEW or result.detectable is None:
        return "too few items: no difference, however large, could be expected to show"
    after = " after Holm's correction" if corrected else ""
    return (
        f"no difference shown{after}; one of {100 * result.detectable:.1f} points or more would "
        "have been, with 80 % power"
    )
