"""Evaluations that ask for tool calls."""

from __future__ import annotations

import json

import pytest
from tests.support.evaluation_fakes import PROVENANCE, AddOne, FakeSampler, dataset, new_run

from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    ServerFaultError,
    UnsupportedError,
)
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Capability, Completion, SampleRequest
from enginehouse.core.tool_calls import ToolCall, ToolDefinition
from enginehouse.evaluation import (
    EvaluationSpec,
    TaskSpec,
    evaluate,
    find_sample,
    plan_tasks,
    summarise,
)
from enginehouse.evaluation.compare import compare_runs
from enginehouse.report.terminal import render_sample
from enginehouse.tasks.base import CallTools, Item, Outcome, Score
from enginehouse.tools import Step

ADD = ToolDefinition(
    name="answer",
    description="Give the answer.",
    parameters={
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    },
)


class CallAddOne(AddOne):
    """Adds one by a tool call."""

    def ask(self, item: Item) -> CallTools:  # type: ignore[override]
        """One user message, one tool."""
        messages = (Message("user", f"{item.data['n']} + 1 = ?"),)
        return CallTools(
            prompt=ChatPrompt(messages),
            tools=(ADD,),
            choice="required",
            max_calls=1,
            max_tokens=64,
        )

    def score_calls(self, item: Item, calls) -> Score:
        """The number that was called with."""
        right = calls[0].arguments["n"] == item.data["n"] + 1
        return Score(outcome=Outcome.CORRECT if right else Outcome.WRONG)


def _n(request: SampleRequest) -> int:
    assert isinstance(request.prompt, ChatPrompt)
    return int(request.prompt.messages[-1].content.split()[0])


def _native(request: SampleRequest) -> Completion:
    """By n: a right call, a wrong one, an invalid one, words, one cut off; else right."""
    n = _n(request)
    arguments = {1: '{"n": 0}', 2: '{"n": "x"}'}.get(n, json.dumps({"n": n + 1}))
    if n == 3:
        return Completion(text="Four.", finish_reason="stop")
    return Completion(
        text="",
        finish_reason="length" if n == 4 else "tool_calls",
        tool_calls=(ToolCall(id="1", name="answer", arguments=arguments),),
    )


def _reply(request: SampleRequest) -> Completion | str:
    if request.tools:
        return _native(request)
    return json.dumps({"name": "answer", "arguments": {"n": _n(request) + 1}})


async def _run(layout, reply=_reply, *, run=None, sampler=None, **options: object):
    spec = EvaluationSpec(tasks=(TaskSpec(name="addone"),), **options)
    tasks = plan_tasks(spec, {"addone": (CallAddOne(), dataset(20))})
    run = run or new_run(layout, "addone")
    sampler = sampler or FakeSampler(reply)
    await evaluate(spec, tasks=tasks, sampler=sampler, provenance=PROVENANCE, run=run)
    return run


async def test_native_only_counts_what_is_missing_invalid_and_cut_off(layout):
    """Each is not correct, and not valid; the rates have intervals like the headline."""
    run = await _run(layout, tool_steps=(Step.NATIVE,))
    (task,) = summarise(run).tasks
    assert task.outcomes == {
        "correct": 16,
        "wrong": 1,
        "unparsable": 2,
        "truncated": 1,
        "unscored": 0,
        "failed": 0,
    }
    assert task.headline.value == pytest.approx(16 / 20)
    assert task.metrics["schema_valid"].value == pytest.approx(17 / 20)
    assert task.metrics["truncated"].value == pytest.approx(1 / 20)
    assert task.metrics["schema_valid"].interval is not None


async def test_the_ladder_mends_what_native_calls_lack(layout):
    """Every sample is valid; the journal has each attempt, its request, its answer and the step."""
    run = await _run(layout)
    (task,) = summarise(run).tasks
    assert task.metrics["schema_valid"].value == 1.0
    assert task.outcomes["correct"] == 19
    samples = [
        record
        for line in run.journal_path.read_text().splitlines()
        if (record := json.loads(line)).get("record") == "sample"
    ]
    by_item = {sample["position"]: sample for sample in samples}
    assert [a["step"] for a in by_item[3]["tool_use"]["attempts"]] == ["native", "constrained"]
    assert by_item[3]["tool_use"]["step"] == "constrained"
    assert by_item[3]["tool_use"]["calls"][0]["arguments"] == {"n": 4}
    assert len(by_item[3]["requests"]) == len(by_item[3]["responses"]) == 2
    assert by_item[3]["responses"][0]["completions"][0]["text"] == "Four."
    assert len(by_item[0]["requests"]) == 1


async def test_one_sample_shows_its_call_and_what_was_tried(layout):
    """Step by step, with the reason why a step was left, and the tools that were offered."""
    run = await _run(layout)
    text = render_sample(find_sample(run, 4))
    assert "native: missing, there is no call in it" in text
    assert "constrained: called" in text
    assert 'call call_0: answer {"n":4}' in text
    assert "[tools, choice required]\nanswer" in text
    assert text.index("Four.") < text.index('{"name": "answer"')
    assert '[tool call answer]\n{"n": 1}' in render_sample(find_sample(run, 1))


async def test_native_only_and_the_ladder_are_compared(layout):
    """The pairs are pairs, the steps are named as what differs, and nothing else is."""
    only = await _run(layout, tool_steps=(Step.NATIVE,))
    ladder = await _run(layout)
    comparison = compare_runs(only, ladder)
    (task,) = comparison.tasks
    assert task.headline is not None
    assert {metric.metric for metric in task.metrics} == {"schema_valid", "truncated"}
    assert any("different tool steps: A native; B native, con" in w for w in comparison.warnings)
    assert not any("structured" in w for w in comparison.warnings)


async def test_an_interrupted_run_is_resumed(layout):
    """Nothing is asked twice; with other steps it is not the same run, and refused."""
    asked = 0

    def dying(request: SampleRequest):
        nonlocal asked
        asked += 1
        if asked > 6:
            raise RuntimeError("pulled the plug")
        return _reply(request)

    run = new_run(layout, "addone")
    with pytest.raises(RuntimeError, match="plug"):
        await _run(layout, dying, run=run, concurrency=1)
    before = run.journal_path.read_text().count('"record":"score"')
    assert 0 < before < 20
    with pytest.raises(ConfigurationError, match="tool_steps"):
        await _run(layout, run=run, tool_steps=(Step.NATIVE,))
    sampler = FakeSampler(_reply)
    await _run(layout, run=run, sampler=sampler)
    assert len({_n(request) for request in sampler.requests}) == 20 - before
    assert summarise(run).complete


async def test_a_lost_connection_is_a_failed_sample_not_a_missing_call(layout):
    """It has no outcome of a call, and no step is tried after it."""
    sampler = FakeSampler(
        lambda request: ServerFaultError("500", status=500) if _n(request) == 5 else _reply(request)
    )
    run = await _run(layout, sampler=sampler, max_failed=0.5)
    (task,) = summarise(run).tasks
    assert task.outcomes["failed"] == 1
    assert sum(_n(request) == 5 for request in sampler.requests) == 1
    assert ConnectionFailedError.__name__ not in run.journal_path.read_text()


async def test_steps_that_the_engine_cannot_do_are_refused_before_anything_is_asked(layout):
    """Native only, of an engine without tools."""
    sampler = FakeSampler(_reply, capabilities=frozenset({Capability.CHAT}))
    with pytest.raises(UnsupportedError, match="native"):
        await _run(layout, sampler=sampler, tool_steps=(Step.NATIVE,))
    assert sampler.requests == []


async def test_system_max_tokens_and_seed_reach_every_step(layout):
    """The user's system message stands before the tools' description."""
    sampler = FakeSampler(lambda request: Completion(text="No.", finish_reason="stop"))
    await _run(layout, sampler=sampler, system="Be exact.", max_tokens=9, temperature=0.5)
    for request in sampler.requests:
        assert request.prompt.messages[0].content.startswith("Be exact.")
        assert request.parameters.max_tokens == 9
        assert request.parameters.seed is not None
        assert request.parameters.temperature == 0.5
