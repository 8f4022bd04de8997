"""What may differ when answers are scored again: the scoring, not what was asked."""

from __future__ import annotations

from enginehouse.core.errors import ConfigurationError
from enginehouse.evaluation.asking import question_of, with_system
from enginehouse.evaluation.plan import TaskPlan
from enginehouse.evaluation.records import DatasetRecord, EvaluationSpec, SampleRecord
from enginehouse.tasks.base import Generate


def demand_same_size(plan: TaskPlan, known: DatasetRecord) -> None:
    """Raise ConfigurationError if the task has another number of items or samples now."""
    if (plan.record.items, plan.record.samples) != (known.items, known.samples):
        now = f"{plan.record.items:,} items, {plan.record.samples:,} samples each, now"
        raise _changed(plan, f"{known.items:,} items, {known.samples:,} samples each, then; {now}")


def demand_same_question(
    plan: TaskPlan, known: DatasetRecord, sample: SampleRecord, *, spec: EvaluationSpec
) -> None:
    """Raise ConfigurationError if the task would ask something else than what `sample` answers.

    A written answer's prompt, stop texts and length are compared. The prompts of choices and tool
    calls are journaled as they were encoded, so that for them version and data must be the same.
    """
    item = plan.item(sample.position)
    if item.id != sample.item:
        raise _changed(plan, f"item {sample.item} is item {item.id} now")
    question = question_of(plan, item)
    if not isinstance(question, Generate) or sample.tool_use or sample.continuations is not None:
        if (plan.record.version, plan.record.digest) != (known.version, known.digest):
            raise _changed(plan, "its version or its data have changed")
        return
    request = sample.requests[0]
    stop = question.stop if spec.stop is None else spec.stop
    limit = plan.max_tokens or question.max_tokens
    if request.prompt != with_system(question.prompt, spec):
        raise _changed(plan, f"item {sample.item} has another prompt now")
    if (request.parameters.stop, request.parameters.max_tokens) != (stop, limit):
        raise _changed(plan, f"item {sample.item} has other stop texts or another max_tokens now")


def _changed(plan: TaskPlan, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"task {plan.name} no longer asks the questions that the run's answers belong to",
        why=why,
        fix="only the scoring may differ: restore the rest of the task, or start a new run",
    )
