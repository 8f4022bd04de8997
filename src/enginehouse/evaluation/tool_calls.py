"""Asking for tool calls, and scoring the result."""

from __future__ import annotations

import msgspec

from enginehouse.core.errors import TaskError, UnsupportedError
from enginehouse.core.sampler import Capabilities, Capability, Sampler
from enginehouse.core.sampling import SamplingParameters
from enginehouse.evaluation.records import SampleRecord, ToolAttempt, ToolUse
from enginehouse.tasks.base import CallTools, Item, Measure, Outcome, Score, Task, ToolTask
from enginehouse.tools import CallOutcome, Ladder, Step, ToolResult

_NEEDED = {
    Step.NATIVE: Capability.TOOLS,
    Step.CONSTRAINED: Capability.JSON_SCHEMA,
    Step.PROMPTED: Capability.CHAT,
}


async def ask_calls(
    sampler: Sampler, question: CallTools, *, parameters: SamplingParameters, ladder: Ladder
) -> ToolResult:
    """Ask for calls by the ladder's steps. Raises WireError; ConfigurationError for bad tools."""
    from enginehouse.tools import call_tools  # imports jsonschema, which most runs do without

    return await call_tools(
        sampler,
        question.prompt.messages,
        question.tools,
        choice=question.choice,
        parameters=parameters,
        max_calls=question.max_calls,
        ladder=ladder,
    )


def with_result(record: SampleRecord, result: ToolResult) -> SampleRecord:
    """The sample's record with every answered request and the step that succeeded."""
    answered = [attempt for attempt in result.attempts if attempt.response is not None]
    return msgspec.structs.replace(
        record,
        requests=tuple(attempt.request for attempt in answered),
        responses=tuple(attempt.response for attempt in answered),
        tool_use=ToolUse(
            step=result.step,
            outcome=result.outcome,
            calls=result.calls,
            attempts=tuple(
                ToolAttempt(step=a.step, outcome=a.outcome, why=a.why) for a in result.attempts
            ),
        ),
    )


def require_steps(task: str, steps: tuple[Step, ...], capabilities: Capabilities) -> None:
    """Raise UnsupportedError if the engine supports none of the steps."""
    supports = capabilities.supports
    if not any(_NEEDED[step] in supports for step in steps):
        raise UnsupportedError(
            f"this engine cannot answer task {task} by {', '.join(steps)}",
            why=f"it does not support {', '.join(_NEEDED[step].value for step in steps)}",
            fix="allow other tool_steps, leave the task out, or use an engine that does",
        )


def score_calls(task: Task, item: Item, use: ToolUse) -> Score:
    """The task's score of valid calls; anything else is not correct.

    Measures: the share of samples with `schema_valid` calls, and of `truncated` ones. A missing
    call is neither.
    """
    if not isinstance(task, ToolTask):
        raise TaskError("the task asks for tool calls and cannot score them")
    score = Score(outcome=Outcome.UNPARSABLE)
    if use.outcome is CallOutcome.CALLED:
        score = task.score_calls(item, use.calls)
    elif use.outcome is CallOutcome.TRUNCATED:
        score = Score(outcome=Outcome.TRUNCATED)
    rates = {
        "schema_valid": Measure(float(use.outcome is CallOutcome.CALLED)),
        "truncated": Measure(float(use.outcome is CallOutcome.TRUNCATED)),
    }
    answer = "; ".join(
        f"{call.name}({msgspec.json.encode(call.arguments).decode()})" for call in use.calls
    )
    return msgspec.structs.replace(
        score, measures={**score.measures, **rates}, answer=score.answer or answer or None
    )
