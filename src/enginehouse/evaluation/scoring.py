"""From a journaled answer to a score."""

from __future__ import annotations

import math

import msgspec

from enginehouse.core.errors import EnginehouseError, ScoringError, ServerGoneError
from enginehouse.core.reasoning import ReasoningUse, separate_reasoning
from enginehouse.evaluation.judge import Judge, judgement_of
from enginehouse.evaluation.plan import TaskPlan
from enginehouse.evaluation.records import (
    EvaluationSpec,
    Failure,
    Judgement,
    ReasoningCount,
    SampleRecord,
    ScoreRecord,
    TaskSpec,
)
from enginehouse.evaluation.scoring_processes import ScoringProcesses
from enginehouse.evaluation.tool_calls import score_calls
from enginehouse.tasks.base import JudgeCall, JudgedTask, Measure, Outcome, Score, ScoringCall

_OF_TASKS = (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE)
_OF_CALLS = (*_OF_TASKS, Outcome.TRUNCATED)


class Pending(msgspec.Struct, frozen=True):
    """An answer that a scoring program or a judge has to score: see `finish_score`."""

    sample: SampleRecord
    call: ScoringCall | JudgeCall
    reasoning: ReasoningCount | None = None


def begin_score(plan: TaskPlan, sample: SampleRecord) -> ScoreRecord | Pending:
    """Score a sample that did not fail, as far as that needs no other process. Does not raise.

    A written answer that max_tokens cut off (finish_reason "length") is truncated, whatever its
    text says. Truncated and unparsable answers count as not correct everywhere: their measures
    keep their weights (such as an IFEval prompt's number of instructions) and get the value 0; to
    know the weights, the task scores truncated texts too. For tool calls see
    `tool_calls.score_calls`. If the task's scoring raises anything or returns an invalid score,
    the sample is unscored. A task is given the text without its reasoning, unless its settings say
    otherwise.
    """
    item = plan.item(sample.position)
    reasoning: ReasoningCount | None = None
    try:
        if sample.tool_use is not None:
            score: Score | ScoringCall | JudgeCall = score_calls(plan.task, item, sample.tool_use)
        elif sample.continuations is not None:
            score = plan.task.score_choice(item, [c.loglikelihood for c in sample.continuations])
        else:
            text, reasoning = _read(sample, plan.settings)
            score = plan.task.score_text(item, text)
        if isinstance(score, JudgeCall) and _is_truncated(sample):
            return _record(sample, Score(outcome=Outcome.TRUNCATED), reasoning=reasoning)
        if isinstance(score, ScoringCall | JudgeCall):
            return Pending(sample, score, reasoning)
        return _record(sample, _checked(score, sample), reasoning=reasoning)
    except Exception as error:  # noqa: BLE001  a task's code may raise anything
        return _unscored(sample, error, reasoning)


async def finish_score(pending: Pending, processes: ScoringProcesses) -> ScoreRecord:
    """Have the program score the answer. Does not raise: see `begin_score`."""
    assert isinstance(pending.call, ScoringCall)
    try:
        score = await processes.score(pending.call)
        return _record(pending.sample, _checked(score, pending.sample), reasoning=pending.reasoning)
    except ScoringError as error:
        return _unscored(pending.sample, error, pending.reasoning)


async def finish_judging(
    pending: Pending, judge: Judge, *, plan: TaskPlan, judge_id: int, spec: EvaluationSpec
) -> ScoreRecord:
    """Have the judge score the answer.

    If asking it fails, or its reply holds no verdict, the answer is unscored. Raises
    ServerGoneError if no answer could be judged any more.
    """
    assert isinstance(pending.call, JudgeCall)
    assert isinstance(plan.task, JudgedTask)
    sample = pending.sample
    request = judge.request(pending.call, sample, spec=spec)
    response = None
    try:
        response = await judge.ask(request)
        score = plan.task.score_judgement(plan.item(sample.position), judgement_of(response))
        record = _record(sample, _checked(score, sample), reasoning=pending.reasoning)
    except ServerGoneError:
        raise
    except Exception as error:  # noqa: BLE001  a task's code may raise anything
        record = _unscored(sample, error, pending.reasoning)
    return msgspec.structs.replace(
        record, judgement=Judgement(judge=judge_id, request=request, response=response)
    )


def _read(sample: SampleRecord, settings: TaskSpec) -> tuple[str, ReasoningCount | None]:
    """A written answer's text as it is scored, and the reasoning in it or beside it."""
    completion = sample.responses[0].completions[0]
    separated = separate_reasoning(completion.text, end=settings.reasoning_end)
    words = separated.reasoning_words + len((completion.reasoning or "").split())
    count = ReasoningCount(words=words, finished=separated.finished) if words else None
    as_it_is = settings.reasoning is ReasoningUse.KEEP or (
        settings.reasoning is ReasoningUse.STRIP_FINISHED and not separated.finished
    )
    return completion.text if as_it_is else separated.visible, count


def _is_written(sample: SampleRecord) -> bool:
    return sample.continuations is None and sample.tool_use is None


def _is_truncated(sample: SampleRecord) -> bool:
    return _is_written(sample) and sample.responses[0].completions[0].finish_reason == "length"


def _record(
    sample: SampleRecord,
    score: Score,
    *,
    failure: Failure | None = None,
    reasoning: ReasoningCount | None = None,
) -> ScoreRecord:
    written = _is_written(sample)
    outcome = Outcome.TRUNCATED if _is_truncated(sample) else score.outcome
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
        failure=failure,
        reasoning=reasoning,
    )


def _unscored(
    sample: SampleRecord, error: Exception, reasoning: ReasoningCount | None
) -> ScoreRecord:
    """The outcome is unscored; a truncated answer is truncated even so."""
    if not isinstance(error, EnginehouseError):
        error = ScoringError(f"the task's scoring raised {type(error).__name__}: {error}")
    return _record(
        sample,
        Score(outcome=Outcome.UNSCORED),
        failure=Failure.of(error),
        reasoning=reasoning,
    )


def _checked(score: Score, sample: SampleRecord) -> Score:
    problem = None
    if score.outcome not in (_OF_TASKS if _is_written(sample) else _OF_CALLS):
        problem = f"a task must not return the outcome {score.outcome}"
    for name, measure in score.measures.items():
        if not math.isfinite(measure.value) or not 0 <= measure.weight < math.inf:
            problem = f"measure {name} is {measure.value} with weight {measure.weight}"
    if problem:
        raise ScoringError("the task's scoring returned an invalid score", why=problem)
    return score
