"""pass@k, mean@k and best@k of a task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from enginehouse.core.errors import ConfigurationError
from enginehouse.evaluation.ledger import CODES, TaskLedger
from enginehouse.evaluation.records import DatasetRecord, EvaluationSpec
from enginehouse.results.summary import AtK, Figure
from enginehouse.statistics.intervals import Floats, interval_of_ratio
from enginehouse.statistics.pass_at_k import best_at_k, mean_at_k, pass_at_k
from enginehouse.tasks.base import Outcome


def choose_ks(
    record: DatasetRecord, spec: EvaluationSpec, wanted: Sequence[int] | None
) -> list[int]:
    """The k to report for a task; `wanted` None: the powers of two up to n, if n is above 1.

    Raises ConfigurationError if a wanted k is above n, the samples per item. A task that is asked
    once because its log-likelihoods do not vary has only k = 1.
    """
    n = record.samples
    if wanted is None:
        return [1 << i for i in range(n.bit_length())] if n > 1 else []
    planned = next((t.samples or spec.samples for t in spec.tasks if t.name == record.task), n)
    if (most := max(wanted, default=1)) > max(n, planned):
        raise ConfigurationError(
            f"pass@{most} of {record.task} cannot be estimated from {n} samples per item",
            why="an unbiased estimate needs k at most n",
            fix=f"ask for k at most {n}, or evaluate with --samples {most} or more",
        )
    return sorted({k for k in wanted if k <= n})


def figures_at_k(task: TaskLedger, k: int) -> AtK:
    """The figures for one k, at most the samples per item.

    Failed and unscored samples are not counted in an item's n; items with n < k are left out.
    """
    states = task.state_table()
    valid = task.counted()
    correct = states == CODES[Outcome.CORRECT]
    enough = int((valid.sum(axis=1) >= k).sum())
    best = {}
    for name, column in sorted(task.measures.items()):
        weights = np.where(valid, column.weights.reshape(states.shape), 0.0)
        measured = weights > 0
        shares = np.divide(
            column.values.reshape(states.shape), weights, out=np.zeros_like(weights), where=measured
        )
        typical = weights.sum(axis=1) / np.maximum(1, measured.sum(axis=1))
        if (figure := _over_items(best_at_k(shares, measured, k=k), typical)) is not None:
            best[name] = figure
    once = np.ones(len(states))
    return AtK(
        k=k,
        items=enough,
        left_out=len(states) - enough,
        pass_at_k=_over_items(pass_at_k(correct, valid, k=k), once),
        mean_at_k=_over_items(mean_at_k(correct.astype(float), valid, k=k), once),
        best_at_k=best,
    )


def figure_of(values: Floats, weights: Floats) -> Figure | None:
    """Σ value / Σ weight with the interval that fits; both have shape (items, repeats)."""
    total = float(weights.sum())
    if not total:
        return None
    value = float(values[weights > 0].sum()) / total
    return Figure(
        value=value, interval=interval_of_ratio(values, weights), n=int((weights > 0).sum())
    )


def _over_items(values: Floats, weights: Floats) -> Figure | None:
    """Mean of the items' values that are numbers, by weight."""
    known = np.isfinite(values)
    weighted = np.where(known, values * weights, 0.0)
    return figure_of(weighted[:, None], np.where(known, weights, 0.0)[:, None])
