"""From a journaled answer to a score."""

from __future__ import annotations

import math

from enginehouse.core.errors import TaskError
from enginehouse.evaluation.plan import TaskPlan
from enginehouse.evaluation.records import SampleRecord, ScoreRecord
from enginehouse.evaluation.tool_calls import score_calls
from enginehouse.tasks.base import Measure, Outcome, Score

_OF_TASKS = (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE)
_OF_CALLS = (*_OF_TASKS, Outcome.TRUNCATED)


def score_sample(plan: TaskPlan, sample: SampleRecord) -> ScoreRecord:
    """Score a sample that did not fail.

    A written answer that max_tokens cut off (finish_reason "length") is truncated, whatever its
    text says. Truncated and unparsable answers count as not correct everywhere: their measures
    keep their weights (an IFEval prompt's number of instructions, say) and have the value 0; for
    that, a truncated text is shown to the task like any other. Raises TaskError, naming the item,
    when the task's scoring raises anything or returns what cannot be counted. Tool calls were
    judged when they were asked for: see `tool_calls.score_calls`.
    """
    written = sample.continuations is None and sample.tool_use is None
    truncated = written and sample.responses[0].completions[0].finish_reason == "length"
    score = _checked(
        _by_task(plan, sample), plan.name, sample.item, allowed=_OF_TASKS if written else _OF_CALLS
    )
    outcome = Outcome.TRUNCATED if truncated else score.outcome
    measures = score.measures
    if written and outcome in (Outcome.TRUNCATED, Outcome.UNPARSABLE):
        measures = {name: Measure(0.0, m.weight) for name, m in measures.items()}
    return ScoreRecord(
        task=sample.task,
        item=sample.item,
        position=sample.position,
        repeat=sample.repeat,
        outcome=outcome,
        measures=measures,
        answer=score.answer,
    )


def _by_task(plan: TaskPlan, sample: SampleRecord) -> Score:
    item = plan.item(sample.position)
    try:
        if sample.tool_use is not None:
            return score_calls(plan.task, item, sample.tool_use)
        if sample.continuations is not None:
            return plan.task.score_choice(item, [c.loglikelihood for c in sample.continuations])
        return plan.task.score_text(item, sample.responses[0].completions[0].text)
    except Exception as error:  # a user's metric may raise anything
        raise TaskError(
            f"task {plan.name} could not score item {sample.item}",
            why=f"{type(error).__name__}: {error}",
            fix="correct the task and start a new run; a run refuses a task that has changed",
        ) from error


def _checked(score: Score, task: str, item: str, *, allowed: tuple[Outcome, ...]) -> Score:
    problem = None
    if score.outcome not in allowed:
        problem = f"the outcome {score.outcome} is not the task's to give"
    for name, measure in score.measures.items():
        if not math.isfinite(measure.value) or not 0 <= measure.weight < math.inf:
            problem = f"measure {name} is {measure.value} with weight {measure.weight}"
    if problem:
        raise TaskError(
            f"task {task} scored item {item} with what cannot be counted",
            why=problem,
            fix="correct the task and start a new run; a run refuses a task that has changed",
        )
    return score
