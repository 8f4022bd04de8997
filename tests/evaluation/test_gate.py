from __future__ import annotations

from typing import Any

import pytest
from tests.support.comparable_runs import ran, wrong_below
from tests.support.evaluation_fakes import AddOne, dataset, question, solve

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    GateError,
    GateUndecidedError,
)
from enginehouse.evaluation.compare import compare_runs
from enginehouse.evaluation.gate import judge, require_pass
from enginehouse.evaluation.policy import Policy
from enginehouse.results.gate import GateVerdict

PASS, FAIL, UNDECIDED = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.UNDECIDED


def policy(**values: Any) -> Policy:
    """A policy that allows two points, but for `values`."""
    return Policy.model_validate({"margin": 0.02, **values})


async def test_worse_than_allowed_fails(layout):
    """By five points of a hundred in a thousand items; its figures are those of `compare`."""
    baseline = await ran(layout, wrong_below(100), size=1000)
    run = await ran(layout, wrong_below(150), size=1000)
    rules = policy()
    gate = judge(run, baseline, rules)
    (figure,) = gate.figures
    assert (gate.verdict, figure.verdict, figure.metric) == (FAIL, FAIL, "headline")
    (compared,) = compare_runs(baseline, run).tasks
    assert figure.result == compared.headline
    assert figure.p_worse == compared.p_corrected
    with pytest.raises(GateError) as raised:
        require_pass(gate, rules)
    assert raised.value.exit_code == 11
    assert judge(baseline, run, rules).verdict is PASS


async def test_what_is_within_the_margin_passes(layout):
    """Significantly worse, and still allowed."""
    baseline = await ran(layout, wrong_below(100), size=1000)
    run = await ran(layout, wrong_below(115), size=1000)
    for test in ("difference", "inferiority"):
        rules = policy(margin=0.05, test=test)
        gate = judge(run, baseline, rules)
        assert gate.verdict is PASS, test
        require_pass(gate, rules)
    assert judge(run, baseline, policy(margin=0.01)).verdict is FAIL


async def test_few_items_leave_it_undecided(layout):
    """With what would have been found, and how many items would do; an exit code of its own."""
    baseline, run = [await ran(layout, wrong_below(n), size=40) for n in (10, 11)]
    rules = policy()
    gate = judge(run, baseline, rules)
    (figure,) = gate.figures
    assert (gate.verdict, figure.verdict) == (UNDECIDED, UNDECIDED)
    assert figure.result.detectable > 0.02
    assert figure.items_needed > 1000
    with pytest.raises(GateUndecidedError) as raised:
        require_pass(gate, rules)
    assert raised.value.exit_code == 12
    require_pass(gate, policy(allow_undecided=True))
    tiny = [await ran(layout, size=5, samples=3, temperature=1.0) for _ in range(2)]
    assert judge(*tiny, policy(margin=0.9)).verdict is UNDECIDED


async def test_inferiority_puts_the_burden_on_the_run(layout):
    """Worse by 2.5 points with 2 allowed: measured to be too much, but not shown to be."""
    baseline, run = [await ran(layout, wrong_below(n), size=1000) for n in (100, 125)]
    assert judge(run, baseline, policy()).verdict is FAIL
    (figure,) = judge(run, baseline, policy(test="inferiority")).figures
    assert figure.verdict is UNDECIDED
    assert figure.result.interval.low < -0.02 < figure.result.interval.high
    worse = await ran(layout, wrong_below(160), size=1000)
    assert judge(worse, baseline, policy(test="inferiority")).verdict is FAIL


async def test_repeated_samples_and_further_metrics(layout):
    """The bootstrap's verdicts, for the headline and for a metric that the policy names."""
    words = {"size": 200, "samples": 4, "temperature": 1.0}
    baseline = await ran(layout, wrong_below(20), **words)
    run = await ran(layout, wrong_below(60), **words)
    for test in ("difference", "inferiority"):
        rules = policy(
            test=test, tasks={"addone": {"metrics": {"parts": {"margin": 0.2}}}}, margin=0.05
        )
        headline, parts = judge(run, baseline, rules).figures
        assert (headline.verdict, headline.result.difference) == (FAIL, pytest.approx(-0.2))
        assert (parts.metric, parts.verdict) == ("parts", PASS)
        assert parts.result.difference == pytest.approx(-0.1)
        assert headline.result.method == "paired bootstrap by item"


async def test_lower_may_be_better(layout):
    """Then a higher value is worse, by either test."""
    baseline, run = [await ran(layout, wrong_below(n), size=400) for n in (100, 20)]
    for test in ("difference", "inferiority"):
        task = {"lower_is_better": True, "test": test}
        assert judge(run, baseline, policy(tasks={"addone": task})).verdict is FAIL
        assert judge(baseline, run, policy(tasks={"addone": task})).verdict is PASS


async def test_nothing_differs(layout):
    """Of values whose scale is unknown, the same ones pass; of shares, enough of them do."""
    alike = [await ran(layout, size=30, samples=2, temperature=1.0) for _ in range(2)]
    rules = policy(tasks={"addone": {"margin": 0.9, "metrics": {"parts": {"margin": 0.001}}}})
    assert [figure.verdict for figure in judge(*alike, rules).figures] == [PASS, PASS]
    many = [await ran(layout, size=2000) for _ in range(2)]
    assert judge(*many, policy(margin=0.01)).verdict is PASS
    few = [await ran(layout, size=30) for _ in range(2)]
    assert judge(*few, policy(margin=0.01)).verdict is UNDECIDED


async def test_many_figures_are_corrected(layout):
    """A p-value of 0.031 fails alone, not among two; passing needs no correction."""
    tasks = {name: (AddOne(name), dataset(20)) for name in ("one", "two")}
    run = await ran(layout, wrong_below(6), tasks=tasks)
    baseline = await ran(layout, tasks=tasks)
    gate = judge(run, baseline, policy())
    assert gate.correction == "Holm, 2 figures"
    assert [(f.verdict, f.p_worse) for f in gate.figures] == [(UNDECIDED, 0.0625)] * 2
    gate = judge(run, baseline, policy(tasks={"one": None}))
    assert [f.verdict for f in gate.figures] == [FAIL]
    assert gate.not_judged == ("two",)
    loose = judge(run, baseline, policy(tasks={"one": None, "two": {"confidence": 0.9}}))
    assert [f.verdict for f in loose.figures] == [UNDECIDED, FAIL]


async def test_what_is_absent_is_what_the_policy_says(layout):
    """A task or metric that one or both lack; a failure unless the policy says otherwise."""
    tasks = {name: (AddOne(name), dataset(20)) for name in ("one", "two")}
    baseline = await ran(layout, tasks=tasks)
    run = await ran(layout, tasks={"one": tasks["one"]})
    for verdict in GateVerdict:
        rules = policy(margin=0.9, absent=verdict)
        one, two = judge(run, baseline, rules).figures
        assert (one.verdict, two.verdict, two.result) == (PASS, verdict, None)
        assert judge(baseline, run, policy(tasks={"two": None}, absent=verdict)).verdict is verdict
    assert judge(run, baseline, policy()).verdict is FAIL
    rules = policy(margin=0.9, tasks={"one": {"metrics": {"pars": {}}}, "tow": None})
    one, pars, tow = judge(run, baseline, rules).figures
    assert [f.verdict for f in (one, pars, tow)] == [PASS, FAIL, FAIL]
    assert "parts" in pars.words
    assert "'two'" in tow.words


async def test_what_cannot_be_paired_is_what_the_policy_says(layout):
    """Other items, missing samples, or too many failures in one task; the other is judged."""
    tasks = {name: (AddOne(name), dataset(20)) for name in ("one", "two")}
    baseline = await ran(layout, tasks=tasks)
    others = {"one": tasks["one"], "two": (AddOne("two"), dataset(12))}
    run = await ran(layout, tasks=others)
    for verdict in GateVerdict:
        one, two = judge(run, baseline, policy(margin=0.9, unpaired=verdict)).figures
        assert (one.verdict, two.verdict, two.result) == (PASS, verdict, None)
    assert judge(run, baseline, policy(margin=0.9)).verdict is FAIL

    def broken(request):
        return BadRequestError("x", status=400) if question(request) < 8 else solve(request)

    (figure,) = judge(await ran(layout, broken), await ran(layout), policy(margin=0.9)).figures
    assert figure.verdict is FAIL
    assert "no score" in figure.words


async def test_a_run_is_no_baseline_of_its_own(layout):
    """Whatever the policy says."""
    run = await ran(layout)
    with pytest.raises(ConfigurationError):
        judge(run, run, policy(unpaired="pass"))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"margin": -0.1},
        {"margin": 0.1, "confidence": 1.0},
        {"margin": 0.1, "test": "superiority"},
        {"margin": 0.1, "absent": "ignore"},
        {"margin": 0.1, "tasks": {"one": {"metric": {}}}},
        {"margin": 0.1, "tasks": ["one"]},
    ],
)
def test_a_wrong_policy_is_refused(values):
    """Before any run is read."""
    with pytest.raises(ValueError, match="validation error"):
        Policy.model_validate(values)
