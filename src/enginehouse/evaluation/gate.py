"""Judges a run against a baseline by a policy. Reads nothing but their journals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from enginehouse.core.errors import ConfigurationError, GateError, GateUndecidedError, nearest
from enginehouse.evaluation.compare import (
    Pairs,
    describe_run,
    headline_pairs,
    lower_is_better,
    metric_pairs,
)
from enginehouse.evaluation.ledger import TaskLedger
from enginehouse.evaluation.pairing import (
    Reading,
    read_run,
    require_pairs,
    require_two_runs,
    warnings,
)
from enginehouse.evaluation.policy import GateTest, MetricRule, Policy, TaskRule
from enginehouse.evaluation.summary import why_no_headline
from enginehouse.results.gate import Gate, GateFigure, GateVerdict
from enginehouse.statistics.multiplicity import holm
from enginehouse.statistics.paired import (
    NO_ITEM_DIFFERS,
    MarginTest,
    PairedResult,
    compare_paired,
    compare_with_margin,
)
from enginehouse.store.runs import Run

HEADLINE = "headline"


def judge(run: Run, baseline: Run, policy: Policy) -> Gate:
    """A verdict for every figure that the policy names; see `GateTest`.

    Samples are paired and counted as in `compare_runs`. Failing is decided after Holm's correction
    over all figures; passing needs none, since all of them have to pass (R. L. Berger,
    Technometrics 24 (1982) 295-300). Raises ConfigurationError if the two are one run or one has
    not begun, and StoreError. Blocking: reads both journals.
    """
    before, after = read_run(baseline), read_run(run)
    require_two_runs(before, after)
    known = [name for name, task in before.ledger.tasks.items() if task.states]
    rules = policy.tasks if policy.tasks is not None else {name: TaskRule() for name in known}
    cases = [
        case
        for name, rule in rules.items()
        for case in _cases(name, rule, policy, before=before, after=after)
    ]
    tested = [p_value for case in cases if (p_value := case.p_worse) is not None]
    corrected = iter(holm(tested))
    figures = tuple(
        _decide(case, p_worse=None if case.p_worse is None else next(corrected)) for case in cases
    )
    verdicts = {figure.verdict for figure in figures}
    return Gate(
        run=describe_run(after),
        baseline=describe_run(before),
        verdict=next(
            (v for v in (GateVerdict.FAIL, GateVerdict.UNDECIDED) if v in verdicts),
            GateVerdict.PASS,
        ),
        figures=figures,
        not_judged=tuple(name for name in known if name not in rules),
        correction=f"Holm, {len(tested)} figures" if len(tested) > 1 else None,
        warnings=tuple(warnings(before, after, _paired_tasks(figures))),
    )


def require_pass(gate: Gate, policy: Policy) -> None:
    """Raise GateError if a figure fails, GateUndecidedError if one may not be undecided but is."""
    if failed := _of(gate, GateVerdict.FAIL):
        raise GateError(
            f"{gate.run.run}: {len(failed)} of {len(gate.figures)} figures fail",
            why=_reasons(failed),
            fix=f"`enginehouse compare {gate.baseline.run} {gate.run.run}` shows both runs",
        )
    if (undecided := _of(gate, GateVerdict.UNDECIDED)) and not policy.allow_undecided:
        raise GateUndecidedError(
            f"{gate.run.run}: {len(undecided)} of {len(gate.figures)} figures are undecided",
            why=_reasons(undecided),
            fix="evaluate both with more items or samples; `allow_undecided: true` in the policy "
            "accepts it",
        )


def _of(gate: Gate, verdict: GateVerdict) -> list[GateFigure]:
    return [figure for figure in gate.figures if figure.verdict is verdict]


def _reasons(figures: list[GateFigure]) -> str:
    return "; ".join(f"{figure.task} {figure.metric}: {figure.words}" for figure in figures)


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """A rule with nothing left open."""

    margin: float
    confidence: float
    test: GateTest
    lower_is_better: bool


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A figure to decide: its comparison, or a verdict without one and why."""

    task: str
    metric: str
    rule: _Rule
    items: int = 0
    subset: bool = False
    result: PairedResult | None = None
    against_margin: MarginTest | None = None
    given: GateVerdict | None = None
    why: str = ""

    @property
    def p_worse(self) -> float | None:
        """The two-sided p-value of what would make it fail; None without a test."""
        if self.rule.test is GateTest.DIFFERENCE:
            return self.result.p_value if self.result else None
        return min(1.0, 2 * self.against_margin.worse) if self.against_margin else None


def _cases(
    name: str, rule: TaskRule, policy: Policy, *, before: Reading, after: Reading
) -> Iterator[_Case]:
    """The task's headline, then the further metrics that its rule names."""
    one, other = before.ledger.tasks.get(name), after.ledger.tasks.get(name)
    own = _completed(policy, rule)
    if rule.lower_is_better is None and one is not None and lower_is_better(one):
        own = replace(own, lower_is_better=True)
    metrics = {
        metric: _completed(policy, rule, further) for metric, further in rule.metrics.items()
    }
    if one is None or other is None:
        given, why = policy.absent, _why_absent(name, before, after)
    else:
        given, why = policy.unpaired, _why_unpaired(name, before, after)
    if why or one is None or other is None:
        for metric, completed in {HEADLINE: own, **metrics}.items():
            yield _Case(task=name, metric=metric, rule=completed, given=given, why=why)
        return
    yield _case(HEADLINE, own, one, other, headline_pairs(one, other), policy)
    for metric, completed in metrics.items():
        common = one.measures.keys() & other.measures.keys()
        if metric in common:
            pairs = metric_pairs(metric, one, other)
            yield _case(metric, completed, one, other, pairs, policy)
        else:
            names = ", ".join(sorted(common)) or "none but the headline"
            why = f"not both runs have this metric; they have {names}"
            yield _Case(task=name, metric=metric, rule=completed, given=policy.absent, why=why)


def _completed(policy: Policy, *rules: MetricRule) -> _Rule:
    """The last of the rules that says something counts; otherwise the policy."""
    given: dict[str, Any] = {"lower_is_better": False}
    for rule in (policy, *rules):
        given |= {
            field: value
            for field in MetricRule.model_fields
            if (value := getattr(rule, field, None)) is not None
        }
    return _Rule(**given)


def _why_absent(name: str, before: Reading, after: Reading) -> str:
    if name in before.ledger.tasks:
        return "the run does not have this task"
    if name in after.ledger.tasks:
        return "the baseline does not have this task"
    close = nearest(name, before.ledger.tasks)
    return "neither run has this task" + (f"; did you mean {close!r}?" if close else "")


def _why_unpaired(name: str, before: Reading, after: Reading) -> str:
    """Why a task of both cannot be compared; empty if it can."""
    if not before.ledger.tasks[name].states:
        return "a group has no samples of its own: name its parts"
    without = [
        f"the {label} has no score: {why}"
        for label, reading in (("baseline", before), ("run", after))
        if (why := why_no_headline(reading.ledger.tasks[name], reading.spec.max_failed))
    ]
    try:
        require_pairs(name, before, after)
    except ConfigurationError as error:
        return error.message + (f" ({error.why})" if error.why else "")
    return "; ".join(without)


def _case(
    metric: str, rule: _Rule, one: TaskLedger, other: TaskLedger, pairs: Pairs, policy: Policy
) -> _Case:
    values, weights = pairs.values, pairs.weights
    record = one.record
    result = compare_paired(values, weights, confidence=rule.confidence)
    if rule.lower_is_better:  # what is worse is then what is higher
        values, weights = values[::-1], weights[::-1]
    return _Case(
        task=record.task,
        metric=metric,
        rule=rule,
        items=record.items,
        subset=record.subset or other.record.subset,
        result=result,
        against_margin=compare_with_margin(values, weights, margin=rule.margin),
        given=None if result else policy.unpaired,
        why="" if result else "no sample has a value in both runs",
    )


def _decide(case: _Case, *, p_worse: float | None) -> GateFigure:
    """The figure with its verdict, for a p-value that is corrected."""
    needed = None
    if case.result is None or case.given is not None:
        verdict, words = case.given or GateVerdict.UNDECIDED, case.why
    elif case.result.interval is None or p_worse is None or case.against_margin is None:
        same = case.result.method == NO_ITEM_DIFFERS
        verdict = GateVerdict.PASS if same else GateVerdict.UNDECIDED
        words = "no item differs" if same else f"too few items ({case.result.method})"
    else:
        shown_worse = p_worse <= 1 - case.rule.confidence
        shown_enough = case.against_margin.not_worse <= (1 - case.rule.confidence) / 2
        verdict, words = _weigh(case.result, case.rule, worse=shown_worse, enough=shown_enough)
        if verdict is GateVerdict.UNDECIDED:
            needed = _items_needed(case)
            words += f"; about {needed:,} items would be enough" if needed else ""
    return GateFigure(
        task=case.task,
        metric=case.metric,
        verdict=verdict,
        words=words,
        test=case.rule.test.value,
        margin=case.rule.margin,
        confidence=case.rule.confidence,
        lower_is_better=case.rule.lower_is_better,
        subset=case.subset,
        items=case.items,
        result=case.result,
        p_worse=p_worse,
        items_needed=needed,
    )


def _weigh(
    result: PairedResult, rule: _Rule, *, worse: bool, enough: bool
) -> tuple[GateVerdict, str]:
    """The verdict and its words.

    `worse`: what the rule tests for is shown. `enough`: it is shown not to be worse than allowed.
    """
    drop = result.difference if rule.lower_is_better else -result.difference
    share = max(abs(result.first), abs(result.second)) <= 1
    allowed, measured = _amount(rule.margin, share=share), _amount(drop, share=share)
    difference = rule.test is GateTest.DIFFERENCE
    if worse and not difference:
        return GateVerdict.FAIL, f"shown to be worse by more than the {allowed} allowed"
    if worse and drop > rule.margin:
        return GateVerdict.FAIL, f"worse by {measured}, {allowed} allowed"
    if enough:
        return GateVerdict.PASS, f"shown not to be worse by more than the {allowed} allowed"
    if result.detectable is None:
        words = "too few items: no difference, however large, could be expected to show"
    elif result.detectable > rule.margin:
        words = (
            "too few items: only a difference of "
            f"{_amount(result.detectable, share=share)} or more would have been found with 80 % "
            f"power, and {allowed} are allowed"
        )
    elif difference and drop <= rule.margin:
        return GateVerdict.PASS, (
            f"not found to be worse by more than the {allowed} allowed, which would have been found"
        )
    else:
        words = f"worse by more than the {allowed} allowed is neither shown nor ruled out"
    return GateVerdict.UNDECIDED, words


def _amount(value: float, *, share: bool) -> str:
    return f"{100 * value:.1f} points" if share else f"{value:.3g}"


def _items_needed(case: _Case) -> int | None:
    """How many items would make a drop of the margin detectable, to two digits.

    What is detectable shrinks with the square root of the number of items.
    """
    least = case.result.detectable if case.result else None
    if least is None or not case.rule.margin or least <= case.rule.margin:
        return None
    needed = case.items * (least / case.rule.margin) ** 2
    digit: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / digit) * digit


def _paired_tasks(figures: tuple[GateFigure, ...]) -> list[str]:
    return list(dict.fromkeys(figure.task for figure in figures if figure.result is not None))
