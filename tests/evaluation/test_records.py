"""Settings of single tasks: how they are asked, and what scoring does with reasoning."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.support.evaluation_fakes import (
    PROVENANCE,
    AddOne,
    FakeSampler,
    PickFirst,
    dataset,
    new_run,
    question,
    solve,
)

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.messages import ChatPrompt
from enginehouse.core.reasoning import ReasoningUse
from enginehouse.core.sampler import Completion, Delivery
from enginehouse.evaluation import EvaluationSpec, TaskSpec, evaluate, plan_tasks, summarise
from enginehouse.evaluation.compare import compare_runs
from enginehouse.evaluation.records import HeaderRecord, Record, ScoreRecord
from enginehouse.results.summary import Reasoning, Report
from enginehouse.store.journal import read_journal
from enginehouse.store.layout import Layout


@pytest.fixture
def layout(tmp_path) -> Layout:
    """A home of its own."""
    return Layout(cache=tmp_path / "c", state=tmp_path / "s", config=tmp_path / "k")


async def ask(
    run: Any, spec: EvaluationSpec, sampler: Any, *, size: int = 4, **more: Any
) -> Report:
    """Evaluate AddOne under every name of the spec; `pick` asks for choices."""
    tasks = {
        task.name: (
            PickFirst("pick") if task.name == "pick" else AddOne(task.name),
            dataset(size),
        )
        for task in spec.tasks
    }
    return await evaluate(
        spec,
        tasks=plan_tasks(spec, tasks),
        sampler=sampler,
        provenance=PROVENANCE,
        run=run,
        **more,
    )


async def test_a_tasks_own_settings_replace_the_evaluations(layout):
    """Each by itself; what the task does not say is the evaluation's."""
    own = TaskSpec(
        name="b", temperature=0.6, top_p=0.95, top_k=20, max_tokens=9, system="Think.", samples=2,
        request_timeout=60, max_retries=0,
    )  # fmt: skip
    spec = EvaluationSpec(
        tasks=(TaskSpec(name="a"), own), temperature=0.1, system="Be brief.", request_timeout=5
    )
    run, sampler = new_run(layout, "a", "b"), FakeSampler()
    report = await ask(run, spec, sampler)
    seen: dict[str, set[Any]] = {"Be brief.": set(), "Think.": set()}
    for request in sampler.requests:
        assert isinstance(request.prompt, ChatPrompt)
        p = request.parameters
        system = request.prompt.messages[0].content
        seen[system].add((p.temperature, p.top_p, p.top_k, p.max_tokens, request.delivery))
    assert seen == {
        "Be brief.": {(0.1, 1.0, 0, 64, Delivery(timeout=5))},
        "Think.": {(0.6, 0.95, 20, 9, Delivery(timeout=60, max_retries=0))},
    }
    assert [task.samples for task in report.tasks] == [4, 8]
    assert report.tasks[0].settings is msgspec.UNSET
    assert report.tasks[1].settings == {
        "temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 9, "system": "Think.",
    }  # fmt: skip


async def test_a_task_has_a_bound_of_its_own(layout):
    """Others go on beside it; all together stay below the largest bound."""
    spec = EvaluationSpec(
        tasks=(TaskSpec(name="a", concurrency=2), TaskSpec(name="b"), TaskSpec(name="pick")),
        concurrency=5,
    )
    in_flight = {"a": 0, "rest": 0}
    most = dict(in_flight)

    class Watched(FakeSampler):
        async def sample(self, request):
            asked_a = isinstance(request.prompt, ChatPrompt) and question(request) < 100
            group = "a" if asked_a else "rest"
            in_flight[group] += 1
            most[group] = max(most[group], in_flight[group])
            try:
                await asyncio.sleep(0)
                return await super().sample(request)
            finally:
                in_flight[group] -= 1

    class Far(AddOne):
        def ask(self, item):
            asked = super().ask(item)
            text = f"{item.data['n'] + 100} + 1 = ?"
            message = msgspec.structs.replace(asked.prompt.messages[0], content=text)
            return msgspec.structs.replace(asked, prompt=ChatPrompt((message,)))

    tasks = {
        "a": (AddOne("a"), dataset(20)),
        "b": (Far("b"), dataset(20)),
        "pick": (PickFirst("pick"), dataset(20)),
    }
    report = await evaluate(
        spec,
        tasks=plan_tasks(spec, tasks),
        sampler=Watched(),
        provenance=PROVENANCE,
        run=new_run(layout, "a", "b", "pick"),
    )
    assert report.complete
    assert most["a"] == 2
    assert 2 < most["rest"] <= 5
    assert spec.most_in_flight == 5
    assert EvaluationSpec(tasks=(TaskSpec(name="a", concurrency=2),)).most_in_flight == 2
    both = (TaskSpec(name="a", concurrency=2), TaskSpec(name="b"))
    assert EvaluationSpec(tasks=both).most_in_flight is None


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"concurrency": 1}, True),
        ({"request_timeout": 9.0}, True),
        ({"max_retries": 1}, True),
        ({"temperature": 0.5}, False),
        ({"system": "Be kind."}, False),
        ({"reasoning": ReasoningUse.KEEP}, False),
    ],
)
async def test_only_what_changes_no_answer_may_differ_on_a_resume(layout, change, same):
    """Of a task, and of the evaluation."""
    spec = EvaluationSpec(tasks=(TaskSpec(name="a"),))
    run = new_run(layout, "a")
    await ask(run, spec, FakeSampler())
    of_task = msgspec.structs.replace(spec, tasks=(TaskSpec(name="a", **change),))
    for other in (of_task, msgspec.structs.replace(spec, **change)):
        if same:
            assert (await ask(run, other, FakeSampler())).complete
        else:
            with pytest.raises(ConfigurationError):
                await ask(run, other, FakeSampler())


def test_a_journal_from_before_can_be_read():
    """Headers without the newer settings mean what they meant."""
    old = (
        b'{"record":"header","format":1,"run":"r","created":"2026-01-02T03:04:05Z","spec":{"tasks":'
        b'[{"name":"a","limit":null,"samples":null,"max_tokens":null}],"samples":2,"seed":1,'
        b'"temperature":0.5,"top_p":1.0,"top_k":0,"min_p":0.0,"repetition_penalty":1.0,'
        b'"presence_penalty":0.0,"frequency_penalty":0.0,"max_tokens":null,"stop":null,'
        b'"system":null,"max_failed":0.01,"concurrency":null,"prices":null,'
        b'"tool_steps":["native","constrained","prompted"]}}'
    )
    header = msgspec.json.decode(old, type=Record)
    assert isinstance(header, HeaderRecord)
    assert header.spec == EvaluationSpec(
        tasks=(TaskSpec(name="a"),), samples=2, seed=1, temperature=0.5
    )
    assert header.spec.settings_of("a").temperature == 0.5


def thinking(request):
    """The right answer behind a wrong one in thought; item 3 never stops thinking."""
    if question(request) == 3:
        return "<think>12 or so"
    return f"<think>let me see</think>{solve(request)}"


async def scored(layout, reply, **settings: Any) -> Report:
    """The report of four items."""
    spec = EvaluationSpec(tasks=(TaskSpec(name="a", **settings),))
    return await ask(new_run(layout, "a"), spec, FakeSampler(reply))


async def test_reasoning_is_left_out_and_counted(layout):
    """By default; the answer that never came is no answer."""
    report = await scored(layout, thinking)
    (task,) = report.tasks
    assert task.outcomes["correct"] == 3
    assert task.outcomes["unparsable"] == 1
    assert task.reasoning == Reasoning(answers=4, mean_words=3.0, unfinished=1, scored=False)
    assert any("reasoning" in note for note in report.notes)


async def test_reasoning_may_be_scored(layout):
    """The text is scored as it came."""
    (task,) = (await scored(layout, thinking, reasoning=ReasoningUse.KEEP)).tasks
    assert task.outcomes["unparsable"] == 4
    assert isinstance(task.reasoning, Reasoning)
    assert task.reasoning.scored


async def test_only_unfinished_reasoning_may_be_scored(layout):
    """It may hold the answer."""
    seen: list[str] = []

    class Noting(AddOne):
        def score_text(self, item, text):
            seen.append(text)
            return super().score_text(item, text)

    spec = EvaluationSpec(tasks=(TaskSpec(name="a", reasoning=ReasoningUse.STRIP_FINISHED),))
    await evaluate(
        spec,
        tasks=plan_tasks(spec, {"a": (Noting("a"), dataset(4))}),
        sampler=FakeSampler(thinking),
        provenance=PROVENANCE,
        run=new_run(layout, "a"),
    )
    assert sorted(seen) == ["1", "2", "3", "<think>12 or so"]


async def test_a_models_own_mark_ends_its_reasoning(layout):
    """And what a server took out of the text is counted as well."""
    report = await scored(layout, lambda r: f"hm, hm ANSWER: {solve(r)}", reasoning_end="ANSWER:")
    assert report.tasks[0].outcomes["correct"] == 4
    beside = await scored(
        layout,
        lambda r: Completion(text=solve(r), finish_reason="stop", reasoning="two words"),
    )
    assert beside.tasks[0].reasoning == Reasoning(
        answers=4, mean_words=2.0, unfinished=0, scored=False
    )


async def test_answers_without_reasoning_take_no_room(layout):
    """Neither in the journal nor in the report."""
    run = new_run(layout, "a")
    report = await ask(run, EvaluationSpec(tasks=(TaskSpec(name="a"),)), FakeSampler())
    assert report.tasks[0].reasoning is msgspec.UNSET
    scores = [e.record for e in read_journal(run.journal_path, Record)]
    assert all(s.reasoning is None for s in scores if isinstance(s, ScoreRecord))
    assert b"reasoning" not in run.journal_path.read_bytes().split(b"\n", 1)[1]
    assert summarise(run) == report


async def test_differing_settings_of_a_task_are_warned_of(layout):
    """With the task's name where only one of several differs."""
    runs = []
    for change in ({}, {"system": "Be kind.", "reasoning": ReasoningUse.KEEP, "temperature": 0.5}):
        spec = EvaluationSpec(tasks=(TaskSpec(name="a"), TaskSpec(name="b", **change)))
        run = new_run(layout, "a", "b")
        await ask(run, spec, FakeSampler())
        runs.append(run)
    said = compare_runs(*runs).warnings
    assert "different system messages: A None, B 'Be kind.' (b)" in said
    assert any("reasoning" in warning and "(b)" in warning for warning in said)
    assert "different temperature: A 0.0, B 0.5 (b)" in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_tokens": 0}, {"samples": 0},
        {"concurrency": 0}, {"request_timeout": 0.0}, {"max_retries": -1}, {"reasoning_end": ""},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong):
    """Of a task, and of the evaluation."""
    with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))}.* task a"):
        TaskSpec(name="a", **wrong)
    with pytest.raises(ConfigurationError):
        EvaluationSpec(tasks=(TaskSpec(name="a"),), **wrong)
