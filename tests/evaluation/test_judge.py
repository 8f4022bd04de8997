"""Answers that another model scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.support.evaluation_fakes import (
    PROVENANCE,
    AddOne,
    FakeSampler,
    dataset,
    new_run,
    question,
    solve,
)

from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    RequestTimeoutError,
    ScoringError,
    ServerGoneError,
    UnauthorizedError,
)
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Completion, Delivery, SampleRequest
from enginehouse.evaluation import (
    EvaluationSpec,
    Judge,
    JudgeSpec,
    TaskSpec,
    count_missing,
    evaluate,
    find_sample,
    plan_tasks,
    rescore,
)
from enginehouse.evaluation.compare import compare_runs
from enginehouse.evaluation.records import JudgeRecord, Record, SampleRecord, ScoreRecord
from enginehouse.results.summary import Report
from enginehouse.store.journal import read_journal
from enginehouse.store.layout import Layout
from enginehouse.store.runs import RunStatus
from enginehouse.tasks.base import Item, JudgeCall, Outcome, Score

SPEC = EvaluationSpec(
    tasks=(TaskSpec(name="addone"),),
    judge=JudgeSpec(model="grader", temperature=0.3, top_p=0.9, max_tokens=50),
)
JUDGE = msgspec.structs.replace(PROVENANCE, model="grader", weights_digest=None)


class Judged(AddOne):
    """AddOne, but whether the sum is right is another model's to say."""

    is_judged = True

    def score_text(self, item: Item, text: str) -> JudgeCall:  # type: ignore[override]
        """One question: the item and the answer."""
        return JudgeCall(prompt=ChatPrompt((Message("user", f"{item.data['n']} + 1 = {text}"),)))

    def score_judgement(self, item: Item, judgement: str) -> Score:
        """Yes or no."""
        if judgement not in ("yes", "no"):
            raise ScoringError(f"{judgement!r} is no verdict")
        outcome = Outcome.CORRECT if judgement == "yes" else Outcome.WRONG
        return Score(outcome=outcome, answer=judgement)


@pytest.fixture
def layout(tmp_path) -> Layout:
    """A home of its own."""
    return Layout(cache=tmp_path / "c", state=tmp_path / "s", config=tmp_path / "k")


def fair(request: SampleRequest) -> str:
    """The judge: yes if the sum is right."""
    assert isinstance(request.prompt, ChatPrompt)
    asked, _, answer = request.prompt.messages[-1].content.partition(" = ")
    return "yes" if answer == str(int(asked.split()[0]) + 1) else "no"


def asked_about(request: SampleRequest) -> int:
    """The n of the answer that the judge is asked about."""
    return question(request)


async def ask(
    run: Any,
    judge: FakeSampler | None,
    *,
    sampler: FakeSampler | None = None,
    spec: EvaluationSpec = SPEC,
    size: int = 6,
    **more: Any,
) -> Report:
    """Evaluate, judged by `judge`; by default item 4 is answered wrongly."""
    return await evaluate(
        spec,
        tasks=plan_tasks(spec, {"addone": (Judged(), dataset(size))}),
        sampler=sampler or FakeSampler(lambda r: "7" if question(r) == 4 else solve(r)),
        provenance=PROVENANCE,
        run=run,
        judge=Judge(judge, provenance=JUDGE) if judge else None,
        **more,
    )


def records(run: Any, kind: type) -> list[Any]:
    """The journal's records of one kind."""
    return [e.record for e in read_journal(run.journal_path, Record) if isinstance(e.record, kind)]


async def test_a_judge_scores_each_answer(layout):
    """Its prompt, parameters and reply are in the journal, and who it is is in the report."""
    run, judge = new_run(layout), FakeSampler(fair)
    report = await ask(run, judge)
    (task,) = report.tasks
    assert (task.outcomes["correct"], task.outcomes["wrong"]) == (5, 1)
    assert task.judge == "grader"
    assert report.judges == (JUDGE,)
    assert {
        (p.temperature, p.top_p, p.max_tokens) for p in (r.parameters for r in judge.requests)
    } == {(0.3, 0.9, 50)}
    assert len({request.parameters.seed for request in judge.requests}) == 6
    scores = records(run, ScoreRecord)
    assert sorted(s.judgement.response.completions[0].text for s in scores) == [
        "no", *["yes"] * 5,
    ]  # fmt: skip
    assert [record.provenance for record in records(run, JudgeRecord)] == [JUDGE]
    view = find_sample(run, 5)
    assert (view.outcome, view.answer) == ("wrong", "no")
    assert view.judge_request in judge.requests
    assert view.judge_response is not None
    assert report.throughput.requests == 6  # the model's, not the judge's


@pytest.mark.parametrize(
    "reply",
    [
        "perhaps",
        RequestTimeoutError("too long"),
        Completion(text="yes", finish_reason="length"),
    ],
)
async def test_a_judge_that_fails_makes_no_answer_wrong(layout, reply):
    """The answer is unscored, with the reason; asking again is resuming with --retry-failed."""
    run = new_run(layout)
    failing = FakeSampler(lambda r: reply if asked_about(r) == 2 else fair(r))
    report = await ask(run, failing)
    (task,) = report.tasks
    assert (task.outcomes["correct"], task.outcomes["wrong"]) == (4, 1)
    assert task.outcomes["unscored"] == 1
    assert find_sample(run, 3).failure is not None
    spec, tasks = SPEC, plan_tasks(SPEC, {"addone": (Judged(), dataset(6))})
    assert count_missing(spec, tasks=tasks, run=run).judgements == 0
    missing = count_missing(spec, tasks=tasks, run=run, retry_failed=True)
    assert (missing.samples, missing.judgements) == (0, 1)

    good = FakeSampler(fair)
    again = await evaluate(
        spec,
        tasks=tasks,
        sampler=None,
        provenance=None,
        run=run,
        judge=Judge(good, provenance=JUDGE),
        retry_failed=True,
    )
    assert [asked_about(request) for request in good.requests] == [2]
    assert again.tasks[0].outcomes["correct"] == 5


@pytest.mark.parametrize(
    "error", [ConnectionFailedError("gone"), UnauthorizedError("no", status=401)]
)
async def test_a_judge_that_is_gone_ends_the_run(layout, error):
    """Every answer is kept, and is judged when the run is resumed; the model is not asked again."""
    run = new_run(layout)
    with pytest.raises(ServerGoneError):
        await ask(run, FakeSampler(lambda r: error if asked_about(r) >= 2 else fair(r)))
    assert run.info.status is not RunStatus.COMPLETE
    assert all(s.outcome is not Outcome.UNSCORED for s in records(run, ScoreRecord))
    before = len(records(run, SampleRecord))
    sampler, judge = FakeSampler(lambda r: "7" if question(r) == 4 else solve(r)), FakeSampler(fair)
    report = await ask(run, judge, sampler=sampler)
    assert report.complete
    assert report.tasks[0].outcomes["correct"] == 5
    assert len(sampler.requests) == 6 - before
    assert len(records(run, ScoreRecord)) == 6


async def test_without_a_judge_nothing_is_scored(layout):
    """That is an error of the configuration."""
    with pytest.raises(ConfigurationError):
        await ask(new_run(layout), None)


async def test_rescoring_asks_the_judge_again(layout):
    """Not the model."""
    run = new_run(layout)
    await ask(run, FakeSampler(fair))
    strict = FakeSampler(lambda _: "no")
    rescoring = await rescore(
        SPEC,
        tasks=plan_tasks(SPEC, {"addone": (Judged(version=2), dataset(6))}),
        run=run,
        judge=Judge(strict, provenance=msgspec.structs.replace(JUDGE, model="strict")),
    )
    assert len(strict.requests) == 6
    assert rescoring.report.tasks[0].outcomes["wrong"] == 6
    assert rescoring.report.tasks[0].judge == "strict"


async def test_reasoning_of_the_judge_is_no_verdict(layout):
    """And its patience is its own."""
    run = new_run(layout)
    seen: list[Any] = []

    def thinking(request: SampleRequest) -> str:
        seen.append(request.delivery)
        return f"<think>no, no</think>{fair(request)}"

    report = await evaluate(
        SPEC,
        tasks=plan_tasks(SPEC, {"addone": (Judged(), dataset(3))}),
        sampler=FakeSampler(),
        provenance=PROVENANCE,
        run=run,
        judge=Judge(
            FakeSampler(thinking), provenance=JUDGE, delivery=Delivery(timeout=3, max_retries=0)
        ),
    )
    assert report.tasks[0].outcomes["correct"] == 3
    assert set(seen) == {Delivery(timeout=3, max_retries=0)}


async def test_truncated_answers_are_truncated_whatever_the_judge_says(layout):
    """As for every other metric; so it is not asked."""
    cut: Callable[[SampleRequest], Completion] = lambda r: Completion(  # noqa: E731
        text=solve(r), finish_reason="length"
    )
    judge = FakeSampler(fair)
    report = await ask(new_run(layout), judge, sampler=FakeSampler(cut))
    assert report.tasks[0].outcomes["truncated"] == 6
    assert not judge.requests


async def test_different_judges_are_warned_of(layout):
    """Since "correct" means something else then."""
    runs = []
    for name, temperature in (("grader", 0.3), ("other", 0.3), ("grader", 0.0)):
        run = new_run(layout)
        spec = msgspec.structs.replace(SPEC, judge=JudgeSpec(model=name, temperature=temperature))
        await evaluate(
            spec,
            tasks=plan_tasks(spec, {"addone": (Judged(), dataset(6))}),
            sampler=FakeSampler(),
            provenance=PROVENANCE,
            run=run,
            judge=Judge(FakeSampler(fair), provenance=msgspec.structs.replace(JUDGE, model=name)),
        )
        runs.append(run)
    first, other, cold = runs
    assert "different judges: A grader, B other" in compare_runs(first, other).warnings
    assert "different temperature of the judge: A 0.3, B 0.0" in compare_runs(first, cold).warnings
