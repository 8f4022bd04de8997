from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from tests.support.comparable_runs import ran
from tests.support.evaluation_fakes import AddOne, PickFirst, dataset, question, solve

from enginehouse.core.errors import BadRequestError, ConfigurationError
from enginehouse.evaluation import summarise
from enginehouse.evaluation.plan import sample_seed

SAMPLES = 5


def repeat_of(request) -> int:
    """Which repeat of its item a request is, found by its seed."""
    item = f"q{question(request)}"
    seeds = [sample_seed(0, "addone", item, repeat) for repeat in range(SAMPLES)]
    return seeds.index(request.parameters.seed)


def right(item: int, repeat: int) -> bool:
    """Item 0 never, item 1 once, item 2 twice …, the last repeats first."""
    return SAMPLES - repeat <= item % (SAMPLES + 1)


def reply(request):
    """Right where `right` says so."""
    return solve(request) if right(question(request), repeat_of(request)) else "0"


async def test_figures_agree_with_every_subset(layout):
    """pass@k and best@k are means over all subsets, mean@k over the first k; all have intervals."""
    run = await ran(layout, reply, size=12, samples=SAMPLES, temperature=1.0)
    (task,) = summarise(run, at_k=[3, 1, 5]).tasks
    assert [at.k for at in task.at_k] == [1, 3, 5]
    answers = [[right(i, r) for r in range(SAMPLES)] for i in range(12)]
    parts = [[1.0 if cell else 0.5 for cell in row] for row in answers]
    for at in task.at_k:
        subsets = [list(combinations(range(SAMPLES), at.k))] * 12

        def over_subsets(rows, subsets=subsets):
            return np.mean(
                [np.mean([max(row[i] for i in s) for s in ss]) for row, ss in zip(rows, subsets)]  # noqa: B905
            )

        assert at.pass_at_k.value == pytest.approx(over_subsets(answers))
        assert at.mean_at_k.value == pytest.approx(np.mean([row[: at.k] for row in answers]))
        assert at.best_at_k["parts"].value == pytest.approx(over_subsets(parts))
        assert (at.items, at.left_out) == (12, 0)
        for figure in (at.pass_at_k, at.mean_at_k, at.best_at_k["parts"]):
            assert figure.interval.low <= figure.value <= figure.interval.high
    assert task.at_k[2].mean_at_k.value == pytest.approx(task.headline.value)
    assert task.at_k[0].best_at_k["parts"].value == pytest.approx(task.metrics["parts"].value)


@pytest.mark.parametrize(
    ("samples", "ks"), [(1, []), (2, [1, 2]), (5, [1, 2, 4]), (8, [1, 2, 4, 8])]
)
async def test_powers_of_two_by_default(layout, samples, ks):
    """Up to the samples per item; nothing is said of single samples."""
    run = await ran(layout, size=6, samples=samples, temperature=1.0)
    (task,) = summarise(run).tasks
    assert [at.k for at in task.at_k] == ks


async def test_more_than_there_are_is_refused(layout):
    """pass@5 of 4 samples is never clamped: n is named, and how to get more."""
    run = await ran(layout, samples=4, temperature=1.0)
    with pytest.raises(ConfigurationError) as error:
        summarise(run, at_k=[1, 5])
    assert "pass@5 of addone cannot be estimated from 4 samples per item" in str(error.value)
    assert "--samples 5" in str(error.value)


async def test_tasks_that_are_asked_once_have_no_k_of_their_own(layout):
    """A choice by log-likelihood beside written answers does not forbid the latter's pass@4."""
    tasks = {"addone": (AddOne(), dataset(6)), "pick": (PickFirst("pick"), dataset(6))}
    run = await ran(layout, tasks=tasks, samples=4, temperature=1.0)
    written, choice = summarise(run, at_k=[2, 4]).tasks
    assert [at.k for at in written.at_k] == [2, 4]
    assert choice.at_k == ()
    with pytest.raises(ConfigurationError, match=r"pass@8.* addone"):
        summarise(run, at_k=[8])


async def test_failed_samples_are_no_answers(layout):
    """An item's n counts the others; items with too few are left out, and counted."""

    def failing(request):
        fails = repeat_of(request) < question(request)
        return BadRequestError("x", status=400) if fails else reply(request)

    run = await ran(layout, failing, size=4, samples=SAMPLES, temperature=1.0, max_failed=1.0)
    (task,) = summarise(run, at_k=[1, 3, 5]).tasks
    assert [(at.items, at.left_out) for at in task.at_k] == [(4, 0), (3, 1), (1, 3)]
    # items 0 to 3 have n = 5, 4, 3, 2 answers, of which 0, 1, 2, 2 are right
    assert task.at_k[0].pass_at_k.value == pytest.approx((0 + 1 / 4 + 2 / 3 + 2 / 2) / 4)
    assert task.at_k[1].pass_at_k.value == pytest.approx((0 + 3 / 4 + 1) / 3)
    assert task.at_k[1].mean_at_k.value == pytest.approx((0 + 0 + 2 / 3) / 3)


async def test_where_no_item_has_enough_there_is_no_figure(layout):
    """Every item lost a sample: pass@2 of two samples is unknown, not zero."""

    def failing(request):
        return BadRequestError("x", status=400) if repeat_of(request) == 0 else solve(request)

    run = await ran(layout, failing, size=4, samples=2, temperature=1.0, max_failed=1.0)
    (task,) = summarise(run).tasks
    assert task.at_k[1].pass_at_k is task.at_k[1].mean_at_k is None
    assert (task.at_k[1].best_at_k, task.at_k[1].left_out) == ({}, 4)


async def test_without_a_headline_there_is_nothing_at_k(layout):
    """Too many failures: no score in another guise."""
    run = await ran(layout, lambda _: BadRequestError("x", status=400), samples=2, temperature=1.0)
    (task,) = summarise(run).tasks
    assert (task.headline, task.at_k) == (None, ())
