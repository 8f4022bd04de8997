from __future__ import annotations

import asyncio
import os
from collections import Counter
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

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    ForbiddenError,
    NoCreditError,
    NoHeadlineError,
    OpenFilesError,
    RequestTimeoutError,
    RunLockedError,
    ServerGoneError,
    StoreError,
    TaskError,
    UnauthorizedError,
    UnsupportedError,
)
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Capability, Completion
from enginehouse.evaluation import (
    EvaluationSpec,
    TaskSpec,
    Timings,
    asking,
    evaluate,
    find_sample,
    plan_tasks,
    require_headlines,
    summarise,
)
from enginehouse.evaluation.plan import sample_seed
from enginehouse.evaluation.records import (
    DatasetRecord,
    HeaderRecord,
    ProvenanceRecord,
    Record,
    SampleRecord,
    ScoreRecord,
)
from enginehouse.store import journal as journal_module
from enginehouse.store.journal import read_journal
from enginehouse.store.runs import RunStatus, open_run
from enginehouse.tasks.base import Measure, Outcome, Score, Task

SPEC = EvaluationSpec(tasks=(TaskSpec(name="addone"),), concurrency=4)
OFTEN = Timings(tick=0.01)


async def run_it(run, spec=SPEC, *, tasks=None, sampler=None, size=10, **options: Any):
    """Evaluate AddOne over `size` items, unless told otherwise."""
    return await evaluate(
        spec,
        tasks=plan_tasks(spec, tasks or {"addone": (AddOne(), dataset(size))}),
        sampler=sampler or FakeSampler(),
        run=run,
        **{"provenance": PROVENANCE, **options},
    )


def records(run, kind=None):
    """The journal's records, of one kind or all."""
    found = [entry.record for entry in read_journal(run.journal_path, Record)]
    return [record for record in found if kind is None or isinstance(record, kind)]


async def test_whole_evaluation(layout):
    """Every sample is asked once, journaled before its score, and the run ends complete."""
    run, sampler = new_run(layout), FakeSampler()
    report = await run_it(run, sampler=sampler)
    assert len(sampler.requests) == 10
    kinds = [type(r) for r in records(run)]
    assert kinds[:3] == [HeaderRecord, DatasetRecord, ProvenanceRecord]
    assert Counter(kinds[3:]) == {SampleRecord: 10, ScoreRecord: 10}
    order = [(type(r), r.position) for r in records(run)[3:]]
    assert all(order.index((SampleRecord, i)) < order.index((ScoreRecord, i)) for i in range(10))
    assert report.complete
    assert report.tasks[0].outcomes["correct"] == 10
    assert run.info.status is RunStatus.COMPLETE
    assert run.info.finished is not None
    assert report == summarise(run)
    assert msgspec.json.decode(run.report_path.read_bytes(), type=type(report)) == report


async def test_request_is_journaled_exactly_as_sent(layout):
    """All sampling parameters, the seed, the task's stop and the prompt are in the record."""
    spec = msgspec.structs.replace(
        SPEC, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1,
        presence_penalty=0.2, frequency_penalty=0.3, seed=42,
    )  # fmt: skip
    run, sampler = new_run(layout), FakeSampler()
    await run_it(run, spec, sampler=sampler)
    by_item = {r.item: r for r in records(run, SampleRecord)}
    for request in sampler.requests:
        record = by_item[f"q{question(request)}"]
        assert record.requests == (request,)
        p = request.parameters
        assert p.seed == sample_seed(42, "addone", record.item, 0)
        assert (p.temperature, p.top_p, p.top_k, p.min_p) == (0.7, 0.9, 5, 0.1)
        assert (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) == (1.1, 0.2, 0.3)
        assert (p.max_tokens, p.stop, p.n) == (64, ("\n",), 1)
    raw = run.journal_path.read_text()
    assert '"temperature":0.7' in raw
    assert '"token_ids":[1,2]' in raw


async def test_overrides_replace_the_tasks_own(layout):
    """max_tokens (the task's entry first), stop (an empty one too) and the system message."""
    spec = EvaluationSpec(
        tasks=(TaskSpec(name="addone", max_tokens=9), TaskSpec(name="b")),
        max_tokens=5,
        stop=(),
        system="Be brief.",
    )
    sampler = FakeSampler()
    tasks = {name: (AddOne(name), dataset(1)) for name in ("addone", "b")}
    await run_it(new_run(layout), spec, tasks=tasks, sampler=sampler)
    assert [r.parameters.max_tokens for r in sampler.requests] == [9, 5]
    assert {r.parameters.stop for r in sampler.requests} == {()}
    assert sampler.requests[0].prompt == ChatPrompt(
        (Message("system", "Be brief."), Message("user", "0 + 1 = ?"))
    )


async def test_seeds_are_paired_between_models(layout):
    """Two runs with the same seed send the same requests, repeats differing by their seeds."""
    spec = msgspec.structs.replace(SPEC, samples=3, temperature=1.0)
    one, other = FakeSampler(), FakeSampler(lambda _: "no")
    await run_it(new_run(layout), spec, sampler=one)
    await run_it(new_run(layout), spec, sampler=other)
    assert one.requests == other.requests
    assert len({r.parameters.seed for r in one.requests}) == 30


async def test_engine_without_seeds_gets_none_and_the_report_says_so(layout):
    """A field that the engine does not know is not sent behind the user's back."""
    sampler = FakeSampler(capabilities=frozenset({Capability.CHAT}))
    report = await run_it(new_run(layout), sampler=sampler)
    assert {r.parameters.seed for r in sampler.requests} == {None}
    assert any("does not support seeds" in note for note in report.notes)


async def test_resume_asks_exactly_what_is_missing(layout):
    """A run cut in two by cancellation asks each sample once over both processes."""
    run, first = new_run(layout), FakeSampler()

    def stop_at_seven(request):
        if len(first.requests) == 7:
            raise asyncio.CancelledError
        return solve(request)

    first.reply = stop_at_seven
    with pytest.raises(asyncio.CancelledError):
        await run_it(run, sampler=first)
    assert run.info.status is RunStatus.INTERRUPTED
    done = {r.item for r in records(run, SampleRecord)}
    assert 0 < len(done) < 10
    partial = summarise(run)
    assert not partial.complete
    assert any("missing" in note for note in partial.notes)
    second = FakeSampler()
    elsewhere = msgspec.structs.replace(PROVENANCE, base_url="http://127.0.0.1:2")
    report = await run_it(open_run(layout, run.info.id), sampler=second, provenance=elsewhere)
    assert {f"q{question(r)}" for r in second.requests} == {f"q{i}" for i in range(10)} - done
    assert report.tasks[0].outcomes["correct"] == 10
    assert report.provenance == (PROVENANCE, elsewhere)
    sessions = {r.item: r.provenance for r in records(run, SampleRecord)}
    assert {item: int(item not in done) for item in sessions} == sessions


async def test_finished_run_asks_nothing(layout):
    """Resuming a complete run gives its report again, without a request or a new record."""
    run = new_run(layout)
    report = await run_it(run)
    before = run.journal_path.read_bytes()
    sampler = FakeSampler()
    assert await run_it(run, sampler=sampler) == report
    assert sampler.requests == []
    assert run.journal_path.read_bytes() == before


async def test_cancelling_the_callers_task_ends_everything(layout):
    """Ctrl-C: no request stays in flight, the status is interrupted, the lock is free."""
    run, started = new_run(layout), asyncio.Event()

    class Hangs(FakeSampler):
        async def sample(self, request):
            self.in_flight += 1
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.in_flight -= 1

    sampler = Hangs()
    work = asyncio.create_task(run_it(run, sampler=sampler))
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert sampler.in_flight == 0
    assert run.info.status is RunStatus.INTERRUPTED
    assert not run.is_held()


class Broken(AddOne):
    """Cannot score q3."""

    def score_text(self, item, text):
        """Raise for one item."""
        if item.id == "q3":
            raise KeyError("oops")
        return super().score_text(item, text)


async def test_an_answer_that_cannot_be_scored_is_unscored_and_the_run_goes_on(layout):
    """Its reason is journaled; it is left out of the headline; resuming does not score it again."""
    run = new_run(layout)
    spec = msgspec.structs.replace(SPEC, max_failed=0.2)
    report = await run_it(run, spec, tasks={"addone": (Broken(), dataset(10))})
    assert report.complete
    assert report.tasks[0].outcomes["unscored"] == 1
    assert report.tasks[0].outcomes["correct"] == 9
    assert report.tasks[0].headline.value == 1.0
    assert report.tasks[0].metrics["parts"].value == 1.0
    assert any("between 90.0% and 100.0%" in note for note in report.notes)
    (unscored,) = [r for r in records(run, ScoreRecord) if r.outcome is Outcome.UNSCORED]
    assert (unscored.item, unscored.failure.error) == ("q3", "ScoringError")
    assert "KeyError: 'oops'" in unscored.failure.message
    view = find_sample(run, 4)
    assert view.outcome == "unscored"
    assert "KeyError" in view.failure
    again = FakeSampler()
    assert await run_it(run, spec, tasks={"addone": (Broken(), dataset(10))}, sampler=again)
    assert again.requests == []
    assert len(records(run, ScoreRecord)) == 10


async def test_too_many_unscored_answers_give_no_headline(layout):
    """As with failed ones; what helps is `rescore`."""
    report = await run_it(new_run(layout), tasks={"addone": (Broken(), dataset(10))})
    assert report.tasks[0].headline is None
    assert "1 of 10 samples could not be scored" in report.tasks[0].no_headline
    with pytest.raises(NoHeadlineError) as caught:
        require_headlines(report)
    assert "enginehouse rescore" in caught.value.fix
    assert "--retry-failed" not in caught.value.fix


@pytest.mark.parametrize(
    "score",
    [
        Score(outcome=Outcome.FAILED),
        Score(outcome=Outcome.TRUNCATED),
        Score(outcome=Outcome.UNSCORED),
        Score(outcome=Outcome.CORRECT, measures={"m": Measure(float("nan"))}),
        Score(outcome=Outcome.CORRECT, measures={"m": Measure(1.0, -1.0)}),
    ],
)
async def test_scores_that_cannot_be_counted_are_none(layout, score):
    """NaN, a negative weight, or an outcome that only the runner gives: a broken task."""

    class Odd(AddOne):
        def score_text(self, item, text):
            return score

    run = new_run(layout)
    report = await run_it(run, tasks={"addone": (Odd(), dataset(2))})
    assert report.tasks[0].outcomes["unscored"] == 2
    for record in records(run, ScoreRecord):
        assert (record.failure.error, record.failure.stage) == ("ScoringError", "task")


async def test_a_task_without_the_scoring_it_needs_asks_nothing(layout):
    """What it asks says which one that is."""

    class Unscored(Task):
        info, load, ask = AddOne().info, AddOne.load, AddOne.ask

    sampler = FakeSampler()
    with pytest.raises(TaskError, match="addone") as caught:
        await run_it(new_run(layout), tasks={"addone": (Unscored(), dataset(2))}, sampler=sampler)
    assert "score_text" in (caught.value.why or "")
    assert sampler.requests == []


async def test_task_that_cannot_ask_stops_the_run(layout):
    """A user's template that raises is the task's fault and names the item."""

    class Mute(AddOne):
        def ask(self, item):
            if item.id == "q1":
                raise ValueError("no field 'x'")
            return super().ask(item)

    with pytest.raises(TaskError, match="item q1"):
        await run_it(new_run(layout), tasks={"addone": (Mute(), dataset(2))})


async def test_failed_sample_is_a_row_and_the_run_goes_on(layout):
    """A WireError is recorded with class and stage, never scored, and counted apart."""
    run, task = new_run(layout), AddOne()

    def reply(request):
        if question(request) == 4:
            return RequestTimeoutError("no first byte within 60 s", why="server busy")
        return solve(request)

    spec = msgspec.structs.replace(SPEC, max_failed=0.2)
    report = await run_it(
        run, spec, tasks={"addone": (task, dataset(10))}, sampler=FakeSampler(reply)
    )
    (failed,) = [r for r in records(run, SampleRecord) if r.failure]
    assert (failed.item, failed.failure.error, failed.failure.stage) == (
        "q4",
        "RequestTimeoutError",
        "wire",
    )
    assert failed.failure.message == "no first byte within 60 s: server busy"
    assert failed.requests[0].parameters.seed == sample_seed(0, "addone", "q4", 0)
    assert "q4" not in task.scored
    assert report.tasks[0].outcomes == {
        "correct": 9, "wrong": 0, "unparsable": 0, "truncated": 0, "unscored": 0, "failed": 1,
    }  # fmt: skip
    assert report.tasks[0].headline.value == 1.0
    require_headlines(report)


async def test_too_many_failures_leave_no_headline(layout):
    """Above max_failed there is no score, and the reason is given; the run is complete."""
    sampler = FakeSampler(
        lambda r: BadRequestError("bad", status=400) if question(r) < 2 else solve(r)
    )
    report = await run_it(new_run(layout), sampler=sampler)
    assert report.complete
    assert report.tasks[0].headline is None
    assert report.tasks[0].no_headline == (
        "2 of 10 samples failed (20.0%), more than the 1.0% allowed; "
        "most of them with BadRequestError"
    )
    with pytest.raises(NoHeadlineError, match="addone"):
        require_headlines(report)


async def test_failed_samples_are_done_unless_retried(layout):
    """A resume leaves them; retry_failed asks them again, and the later record counts, once."""
    run = new_run(layout)
    sick = FakeSampler(
        lambda r: BadRequestError("bad", status=400) if question(r) < 3 else solve(r)
    )
    await run_it(run, sampler=sick)
    idle = FakeSampler()
    await run_it(run, sampler=idle)
    assert idle.requests == []
    half = FakeSampler(
        lambda r: BadRequestError("bad", status=400) if question(r) < 1 else solve(r)
    )
    report = await run_it(run, sampler=half, retry_failed=True)
    assert sorted(question(r) for r in half.requests) == [0, 1, 2]
    outcomes = report.tasks[0].outcomes
    assert (outcomes["correct"], outcomes["failed"], sum(outcomes.values())) == (9, 1, 10)
    cured = await run_it(run, retry_failed=True)
    assert cured.tasks[0].headline.value == 1.0
    assert cured.tasks[0].outcomes["failed"] == 0


async def test_server_that_is_gone_stops_the_run(layout):
    """After a bounded number of refused connections the run stops; none is counted as failed."""
    run = new_run(layout)

    def dies(request):
        return solve(request) if question(request) < 20 else ConnectionFailedError("refused")

    sampler = FakeSampler(dies)
    with pytest.raises(ServerGoneError, match=r"1\d requests") as caught:
        await run_it(run, sampler=sampler, size=1000)
    assert "980 samples are missing" in str(caught.value)
    assert len(sampler.requests) < 40
    assert run.info.status is RunStatus.INTERRUPTED
    assert [r for r in records(run, SampleRecord) if r.failure] == []
    report = await run_it(run, size=1000)
    assert report.tasks[0].outcomes["correct"] == 1000


async def test_small_run_without_any_answer_stops_too(layout):
    """Three samples, all refused: the server is gone, which is not three failed samples."""
    run = new_run(layout)
    with pytest.raises(ServerGoneError):
        await run_it(run, sampler=FakeSampler(lambda _: ConnectionFailedError("refused")), size=3)
    assert records(run, SampleRecord) == []


async def test_a_server_that_dies_with_the_last_samples_fails_none_of_them(layout):
    """Fewer are left than a streak needs: one that was answered before tells the difference."""
    run = new_run(layout)
    answered = []

    def dies(request):
        if len(answered) < 97:
            answered.append(request)
            return solve(request)
        return ConnectionFailedError("refused")

    with pytest.raises(ServerGoneError, match="3 requests"):
        await run_it(run, sampler=FakeSampler(dies), size=100)
    assert [r for r in records(run, SampleRecord) if r.failure] == []
    report = await run_it(run, size=100)
    assert report.tasks[0].outcomes["correct"] == 100


async def test_single_refused_connections_are_failures(layout):
    """The server answered before and after: those samples failed, wherever they stand."""
    sampler = FakeSampler(
        lambda r: ConnectionFailedError("reset") if question(r) in (3, 50, 99) else solve(r)
    )
    run = new_run(layout)
    report = await run_it(run, sampler=sampler, size=100)
    assert report.tasks[0].outcomes["failed"] == 3
    assert {r.item for r in records(run, SampleRecord) if r.failure} == {"q3", "q50", "q99"}


@pytest.mark.parametrize(
    ("error", "most"), [(UnauthorizedError, 20), (NoCreditError, 20), (ForbiddenError, 60)]
)
@pytest.mark.parametrize("size", [3, 1000])
async def test_a_key_that_is_refused_stops_the_run(layout, error, most, size):
    """Early, with one error; no sample counts as failed for it, and another key goes on."""
    run = new_run(layout)
    sampler = FakeSampler(lambda _: error("no such key", status=401))
    with pytest.raises(error, match="API key") as caught:
        await run_it(run, sampler=sampler, size=size)
    assert (caught.value.why, caught.value.status) == ("no such key", 401)
    assert f"{size} samples are missing" in str(caught.value.fix)
    assert len(sampler.requests) <= most
    assert run.info.status is RunStatus.INTERRUPTED
    assert records(run, SampleRecord) == []
    report = await run_it(run, size=size)
    assert report.tasks[0].outcomes["correct"] == size


@pytest.mark.parametrize("left", [5, 500])
async def test_a_key_that_is_revoked_stops_the_run(layout, left):
    """Whether many are left or fewer than a streak needs: nothing is a failed sample."""
    run = new_run(layout)
    answered = []

    def revoked(request):
        if len(answered) < 1000 - left:
            answered.append(request)
            return solve(request)
        return UnauthorizedError("revoked", status=401)

    sampler = FakeSampler(revoked)
    with pytest.raises(UnauthorizedError, match="API key"):
        await run_it(run, sampler=sampler, size=1000)
    assert len(sampler.requests) < 1000 - left + 30
    assert [r for r in records(run, SampleRecord) if r.failure] == []
    report = await run_it(run, size=1000)
    assert report.tasks[0].outcomes["correct"] == 1000


async def test_single_refusals_are_failures(layout):
    """A filter's 403 on some prompts is theirs alone, also where only they are left to ask."""
    run = new_run(layout)
    refused = {3, 4, 97, 98, 99}
    sampler = FakeSampler(
        lambda r: ForbiddenError("flagged", status=403) if question(r) in refused else solve(r)
    )
    report = await run_it(run, sampler=sampler, size=100)
    assert report.tasks[0].outcomes["failed"] == 5
    assert {r.item for r in records(run, SampleRecord) if r.failure} == {f"q{n}" for n in refused}
    again = await run_it(run, sampler=sampler, size=100, retry_failed=True)
    assert again.tasks[0].outcomes["failed"] == 5


async def test_truncated_whatever_the_text_says(layout):
    """finish_reason "length" is truncated; its measures keep their weight and count 0."""

    def reply(request):
        n = question(request)
        return Completion(text=solve(request), finish_reason="length" if n == 0 else "stop")

    report = await run_it(new_run(layout), sampler=FakeSampler(reply), size=4)
    assert report.tasks[0].outcomes["truncated"] == 1
    assert report.tasks[0].headline.value == 0.75
    assert report.tasks[0].metrics["parts"].value == pytest.approx(6 / 8)


async def test_unparsable_counts_nowhere(layout):
    """The task gave 1 of 2 parts to an unparsable answer; it counts 0 of 2."""
    sampler = FakeSampler(lambda r: "none" if question(r) == 0 else solve(r))
    report = await run_it(new_run(layout), sampler=sampler, size=4)
    assert report.tasks[0].outcomes["unparsable"] == 1
    assert report.tasks[0].metrics["parts"].value == pytest.approx(6 / 8)


async def test_choices_share_the_pool_with_written_answers(layout):
    """Both kinds in one run; a choice is one sample of several requests, kept without bulk."""
    spec = EvaluationSpec(tasks=(TaskSpec(name="addone"), TaskSpec(name="pick")), samples=2)
    run, sampler = new_run(layout, "addone", "pick"), FakeSampler()
    tasks = {"addone": (AddOne(), dataset(3)), "pick": (PickFirst("pick"), dataset(5))}
    report = await run_it(run, spec, tasks=tasks, sampler=sampler)
    assert [t.done for t in report.tasks] == [6, 5]
    assert report.tasks[1].headline.value == 1.0
    assert report.tasks[1].metrics["acc"].interval.method == "wilson"
    sample = next(r for r in records(run, SampleRecord) if r.task == "pick")
    assert len(sample.requests) == len(sample.responses) == len(sample.continuations) == 2
    assert sample.responses[0].prompt_logprobs is None
    assert sampler.most_in_flight > 6
    assert any("pick: asked once per item" in note for note in report.notes)
    assert any("at temperature 0" in note for note in report.notes)


async def test_engine_that_cannot_score_prompts_is_refused_before_asking(layout):
    """Without prompt log-probabilities a choice task cannot be evaluated: nothing is asked."""
    spec = EvaluationSpec(tasks=(TaskSpec(name="addone"), TaskSpec(name="pick")))
    sampler = FakeSampler(capabilities=frozenset({Capability.CHAT, Capability.TOKENIZE}))
    tasks = {"addone": (AddOne(), dataset(3)), "pick": (PickFirst("pick"), dataset(5))}
    with pytest.raises(UnsupportedError, match="task pick") as caught:
        await run_it(new_run(layout), spec, tasks=tasks, sampler=sampler)
    assert "prompt_logprobs" in str(caught.value)
    assert sampler.requests == []


@pytest.mark.parametrize("concurrency", [1, 3, 50])
async def test_concurrency_bounds_what_is_in_flight(layout, concurrency):
    """Never more samples than allowed, and as many as allowed."""
    spec = msgspec.structs.replace(SPEC, concurrency=concurrency)
    sampler = FakeSampler()
    await run_it(new_run(layout), spec, sampler=sampler, size=20)
    assert sampler.most_in_flight == min(concurrency, 20)


async def test_resume_with_another_spec_or_data_is_refused(layout):
    """Answers to other questions cannot be added up; concurrency alone may change."""
    run = new_run(layout)
    await run_it(run)
    with pytest.raises(ConfigurationError, match="seed, temperature"):
        await run_it(run, msgspec.structs.replace(SPEC, seed=1, temperature=0.5))
    changed = msgspec.structs.replace(dataset(10), digest="e" * 64)
    with pytest.raises(ConfigurationError, match="addone") as caught:
        await run_it(run, tasks={"addone": (AddOne(), changed)})
    assert "another digest" in str(caught.value)
    with pytest.raises(ConfigurationError, match="another version"):
        await run_it(run, tasks={"addone": (AddOne(version=2), dataset(10))})
    await run_it(run, msgspec.structs.replace(SPEC, concurrency=99))
    assert run.info.status is RunStatus.COMPLETE


async def test_two_resumers_exclude_each_other(layout):
    """The second one is refused at once and changes nothing."""
    run = new_run(layout)
    other = open_run(layout, run.info.id)
    with other.hold(), pytest.raises(RunLockedError):
        await run_it(run)
    assert not run.journal_path.exists()
    assert open_run(layout, run.info.id).info.status is RunStatus.RUNNING


async def test_disk_full_stops_the_run_and_resumes(layout, monkeypatch):
    """The journal cannot grow: StoreError, whole lines only, and a resume completes the run."""
    run, real, budget = new_run(layout), os.write, 3000

    def write(file, data):
        nonlocal budget
        taken = data[:budget]
        budget -= len(taken)
        if not taken:
            raise OSError(28, "No space left on device")
        return real(file, taken)

    monkeypatch.setattr(journal_module.os, "write", write)
    with pytest.raises(StoreError, match=r"journal\.jsonl"):
        await run_it(run)
    monkeypatch.undo()
    assert run.journal_path.read_bytes().endswith(b"}\n")
    assert run.info.status is RunStatus.FAILED
    report = await run_it(run)
    assert report.tasks[0].outcomes["correct"] == 10
    assert len(records(run, SampleRecord)) == 10


async def test_progress_tells_the_last_state(layout):
    """The final progress has everything done, with outcomes, tokens and no time left."""
    seen = []
    sampler = FakeSampler(lambda r: "0" if question(r) < 3 else solve(r))
    await run_it(new_run(layout), sampler=sampler, progress=seen.append)
    last = seen[-1]
    assert (last.done, last.total, last.failed) == (10, 10, 0)
    assert last.tasks[0].outcomes["wrong"] == 3
    assert last.generated_tokens == 20
    assert last.seconds_left == 0


async def test_a_want_of_files_here_is_no_failure_of_a_sample(layout):
    """The run stops and can be resumed; nothing is journaled for it."""
    run = new_run(layout)
    ill = FakeSampler(lambda r: OpenFilesError("none left") if question(r) > 5 else solve(r))
    with pytest.raises(OpenFilesError):
        await run_it(run, sampler=ill)
    assert run.info.status is RunStatus.INTERRUPTED
    assert all(sample.failure is None for sample in records(run, SampleRecord))
    report = await run_it(run)
    assert report.tasks[0].outcomes["correct"] == 10


class HalfSampler(FakeSampler):
    """Answers the second request of every choice only once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()

    async def sample(self, request):
        """As the fake does, but for what ends in "bad"."""
        if request.prompt.token_ids[-1] == ord("d") and request.prompt.token_ids[-2] == ord("a"):
            await self.let.wait()
        return await super().sample(request)


async def test_progress_moves_with_every_request(layout):
    """A choice is done when its last request is; those answered before are told, too."""
    sampler, seen = HalfSampler(), []

    def progress(state):
        seen.append(state)
        if state.requests == 4:
            sampler.let.set()

    spec = EvaluationSpec(tasks=(TaskSpec(name="pick"),), concurrency=4)
    await run_it(
        new_run(layout, "pick"),
        spec,
        tasks={"pick": (PickFirst(), dataset(4))},
        sampler=sampler,
        progress=progress,
        timings=OFTEN,
    )
    half = next(state for state in seen if state.requests == 4)
    assert (half.done, half.generated_tokens) == (0, 8)
    assert half.seconds_left == pytest.approx(half.elapsed / 3)  # 4 done, 4 half done, of 8
    assert (seen[-1].done, seen[-1].requests) == (4, 8)


async def test_samples_are_asked_in_the_order_of_the_plan(layout):
    """A task whose prompts are encoded first is not overtaken by one that is ready at once."""
    spec = EvaluationSpec(tasks=(TaskSpec(name="pick"), TaskSpec(name="addone")), concurrency=1000)
    sampler = FakeSampler()
    await run_it(
        new_run(layout, "pick", "addone"),
        spec,
        tasks={"pick": (PickFirst(), dataset(60)), "addone": (AddOne(), dataset(10))},
        sampler=sampler,
    )
    kinds = [isinstance(request.prompt, ChatPrompt) for request in sampler.requests]
    assert len(kinds) == 130
    assert not any(kinds[: 2 * (60 - asking._BEGINNING)])


async def test_resumed_progress_counts_what_was_done_before(layout):
    """A bar that goes on where it stopped, while tokens are those of this process."""
    run, seen = new_run(layout), []
    sick = FakeSampler(lambda r: BadRequestError("x", status=400) if question(r) else solve(r))
    await run_it(run, sampler=sick)
    await run_it(run, progress=seen.append, retry_failed=True)
    assert seen[-1].done == 10
    assert seen[-1].requests == 9
    assert seen[-1].seconds_left == 0
    assert seen[-1].generated_tokens == 18


async def test_failed_samples_that_are_asked_again_take_time(layout):
    """Nothing is missing, but until the first of them is answered the time left is unknown."""
    run, seen, let = new_run(layout), [], asyncio.Event()
    await run_it(run, sampler=FakeSampler(lambda _: BadRequestError("x", status=400)))

    class Gated(FakeSampler):
        async def sample(self, request):
            await let.wait()
            return await super().sample(request)

    def progress(state):
        seen.append(state)
        let.set()

    await run_it(run, sampler=Gated(), progress=progress, retry_failed=True, timings=OFTEN)
    assert seen[0].seconds_left is None
    assert seen[-1].seconds_left == 0
