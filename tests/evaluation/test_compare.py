from __future__ import annotations

import tracemalloc

import msgspec
import pytest
from scipy.stats import binomtest
from tests.support.comparable_runs import ran, wrong_below
from tests.support.evaluation_fakes import AddOne, PickFirst, dataset, question, solve

from enginehouse.core.errors import BadRequestError, NoHeadlineError
from enginehouse.core.sampler import Completion
from enginehouse.evaluation import summarise
from enginehouse.evaluation.compare import compare_runs, require_scores
from enginehouse.evaluation.pairing import read_run
from enginehouse.evaluation.records import Record
from enginehouse.results.comparison import Comparison, OutcomeCounts, Verdict
from enginehouse.statistics.paired import bonett_price
from enginehouse.store.journal import read_journal


async def test_a_thousand_items_against_a_thousand_items(layout):
    """Scores, difference, interval, exact p-value and verdict, counted by hand."""

    def worse_at_some(request):
        n = question(request)
        return "0" if n < 290 or n % 50 == 49 else solve(request)

    a = await ran(layout, worse_at_some, size=1000)
    b = await ran(layout, wrong_below(250), size=1000)
    (task,) = compare_runs(a, b).tasks
    result = task.headline
    assert (result.pairs, task.left_out) == (1000, 0)
    only_b = 40 + sum(n % 50 == 49 for n in range(290, 1000))
    assert (result.only_first, result.only_second) == (0, only_b)
    assert (result.first, result.second) == (0.75 - only_b / 1000, 0.75)
    assert result.difference == pytest.approx(only_b / 1000)
    assert result.p_value == task.p_corrected == pytest.approx(binomtest(0, only_b).pvalue)
    assert result.interval == bonett_price(0, only_b, 1000)
    assert (task.verdict, task.words) == (Verdict.B_BETTER, "B is better")
    (back,) = compare_runs(b, a).tasks
    assert (back.verdict, back.headline.difference) == (Verdict.A_BETTER, -result.difference)


async def test_scores_are_those_of_the_reports(layout):
    """Where nothing failed, both scores and metrics are exactly the runs' own."""
    a = await ran(layout, wrong_below(3), samples=2, temperature=1.0)
    b = await ran(layout, wrong_below(9), samples=2, temperature=1.0)
    (task,) = compare_runs(a, b).tasks
    for run, side in ((a, "first"), (b, "second")):
        (own,) = summarise(run).tasks
        assert getattr(task.headline, side) == own.headline.value
        assert getattr(task.metrics[0].result, side) == own.metrics["parts"].value
    assert task.metrics[0].metric == "parts"
    assert task.headline.method == "paired bootstrap by item"
    assert (task.headline.pairs, task.samples_per_item) == (40, 2)


async def test_the_same_runs_give_the_same_comparison(layout):
    """Twice, and it survives JSON."""
    a = await ran(layout, wrong_below(3), samples=4, temperature=1.0)
    b = await ran(layout, wrong_below(9), samples=4, temperature=1.0)
    first = compare_runs(a, b)
    assert compare_runs(a, b) == first
    assert msgspec.json.decode(msgspec.json.encode(first), type=Comparison) == first


async def test_no_difference_is_told_from_too_few_items(layout):
    """What would have been seen is named; with five items nothing could have been."""
    few = [await ran(layout, wrong_below(n), size=5) for n in (0, 5)]
    (task,) = compare_runs(*few).tasks
    assert task.headline.difference == -1
    assert (task.verdict, task.headline.detectable) == (Verdict.TOO_FEW, None)
    assert task.words.startswith("too few items: no difference, however large")
    many = [await ran(layout, wrong_below(n), size=400) for n in (100, 102)]
    (task,) = compare_runs(*many).tasks
    assert task.verdict is Verdict.NOT_SHOWN
    assert 0.01 < task.headline.detectable < 0.03
    assert f"one of {100 * task.headline.detectable:.1f} points or more" in task.words
    repeated = [await ran(layout, size=5, samples=3, temperature=1.0) for _ in range(2)]
    (task,) = compare_runs(*repeated).tasks
    assert (task.verdict, task.p_corrected) == (Verdict.TOO_FEW, None)
    assert "fewer than 6 items" in task.words


async def test_failures_leave_with_their_partners(layout):
    """As in the headline, a failure is not wrong: neither side's answer to it counts."""

    def failing(*numbers: int):
        return lambda r: BadRequestError("x", status=400) if question(r) in numbers else solve(r)

    a = await ran(layout, failing(1, 2), max_failed=0.5)
    b = await ran(layout, failing(2, 3, 4), max_failed=0.5)
    (task,) = compare_runs(a, b).tasks
    assert task.failed == OutcomeCounts(a=2, b=3)
    assert (task.left_out, task.headline.pairs) == (4, 16)
    assert (task.headline.first, task.headline.second) == (1, 1)
    assert task.metrics[0].result.pairs == 16


async def test_truncated_and_unparsable_answers_are_not_correct(layout):
    """As in the headline; their numbers are given."""

    def cut(request):
        n = question(request)
        if n < 6:
            return Completion(text=solve(request), finish_reason="length")
        return "no idea" if n < 8 else solve(request)

    (task,) = compare_runs(await ran(layout), await ran(layout, cut)).tasks
    assert task.truncated == OutcomeCounts(a=0, b=6)
    assert task.unparsable == OutcomeCounts(a=0, b=2)
    assert (task.headline.first, task.headline.second) == (1, 0.6)
    assert task.verdict is Verdict.A_BETTER


async def test_a_run_without_a_headline_has_nothing_to_compare(layout):
    """Too many failures: no verdict for that task, the others are compared, and it is an error."""
    tasks = {"addone": (AddOne(), dataset(20)), "pick": (PickFirst("pick"), dataset(8))}
    a = await ran(layout, tasks=tasks)
    b = await ran(layout, lambda _: BadRequestError("x", status=400), tasks=tasks)
    comparison = compare_runs(a, b)
    lost, fine = comparison.tasks
    assert (lost.verdict, lost.headline, lost.metrics) == (Verdict.NO_SCORE, None, ())
    assert lost.words.startswith("B has no score: all 20 samples failed")
    assert fine.headline.pairs == 8
    assert comparison.correction is None
    with pytest.raises(NoHeadlineError, match="addone"):
        require_scores(comparison)


async def test_several_tasks_are_corrected(layout):
    """Two p-values of 0.031 are 0.0625 after Holm: no verdict, and why is said."""
    tasks = {name: (AddOne(name), dataset(20)) for name in ("one", "two")}
    a = await ran(layout, wrong_below(6), tasks=tasks)
    b = await ran(layout, tasks=tasks)
    comparison = compare_runs(a, b)
    assert comparison.correction == "Holm, 2 tasks"
    for task in comparison.tasks:
        assert (task.headline.p_value, task.p_corrected) == (0.03125, 0.0625)
        assert task.verdict is Verdict.NOT_SHOWN
        assert "no difference shown after Holm's correction" in task.words
    alone = [await ran(layout, wrong_below(n)) for n in (6, 0)]
    assert compare_runs(*alone).tasks[0].verdict is Verdict.B_BETTER


async def test_only_the_last_answer_of_a_sample_counts(layout):
    """A failed sample that was asked again is paired by its new answer."""
    a = await ran(layout, wrong_below(0))
    b = await ran(
        layout, lambda r: BadRequestError("x", status=400) if question(r) == 0 else solve(r),
        max_failed=1.0,
    )  # fmt: skip
    again = [e.record for e in read_journal(a.journal_path, Record)][3:5]
    with b.journal_path.open("ab") as file:
        file.writelines(msgspec.json.encode(record) + b"\n" for record in again)
    (task,) = compare_runs(a, b).tasks
    assert (task.headline.pairs, task.left_out) == (20, 0)


@pytest.mark.slow
async def test_memory_hardly_grows_with_the_run(layout):
    """Reading 20,000 samples takes no more than 60 bytes each beyond what 2,000 hold."""
    peaks = []
    for size in (2_000, 20_000):
        run = await ran(layout, size=size)
        tracemalloc.start()
        reading = read_run(run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(reading.ledger.tasks["addone"].states) == size
    assert peaks[1] - peaks[0] < 18_000 * 60
