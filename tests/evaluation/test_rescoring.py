from __future__ import annotations

import asyncio
import textwrap

import msgspec
import pytest
from tests.support.evaluation_fakes import (
    PROVENANCE,
    AddOne,
    FakeSampler,
    PickFirst,
    dataset,
    new_run,
    solve,
)

from enginehouse.core.errors import ConfigurationError, StoreError
from enginehouse.evaluation import (
    EvaluationSpec,
    TaskSpec,
    Timings,
    evaluate,
    plan_tasks,
    rescore,
    summarise,
)
from enginehouse.evaluation import scoring_processes as processes_module
from enginehouse.evaluation.compare import compare_runs
from enginehouse.evaluation.records import (
    DatasetRecord,
    Record,
    RepairRecord,
    SampleRecord,
    ScoreRecord,
)
from enginehouse.store.journal import Journal, read_journal
from enginehouse.store.runs import RunStatus
from enginehouse.tasks.base import Item, Measure, Outcome, Score, ScoringCall
from enginehouse.tasks.metrics import load_metric

SPEC = EvaluationSpec(tasks=(TaskSpec(name="addone"),), concurrency=4, max_failed=1.0)


class Off(AddOne):
    """Another version of the scoring: q1 is wrong, q2 cannot be scored, and there is a measure."""

    def score_text(self, item, text):
        """As said."""
        if item.id == "q2":
            raise ValueError("broken")
        wrong = item.id == "q1"
        return Score(
            outcome=Outcome.WRONG if wrong else Outcome.CORRECT,
            measures={"length": Measure(float(len(text)))},
        )


async def run_it(run, task, *, size=6, spec=SPEC, sampler=None):
    """Evaluate."""
    return await evaluate(
        spec,
        tasks=plan_tasks(spec, {"addone": (task, dataset(size))}),
        sampler=sampler or FakeSampler(),
        provenance=PROVENANCE,
        run=run,
    )


async def score_again(run, task, *, size=6, spec=SPEC, timings=Timings()):  # noqa: B008
    """Rescore."""
    tasks = plan_tasks(spec, {"addone": (task, dataset(size))})
    return await rescore(spec, tasks=tasks, run=run, timings=timings)


def records(run, kind):
    """The journal's records of a kind."""
    return [e.record for e in read_journal(run.journal_path, Record) if isinstance(e.record, kind)]


async def test_answers_are_scored_by_the_task_as_it_is_now(layout):
    """What changed is told; nothing is asked; the old scores stay in the journal."""
    run = new_run(layout)
    before = await run_it(run, Off(version=1))
    assert before.tasks[0].outcomes["unscored"] == 1
    lines = run.journal_path.read_bytes()
    rescoring = await score_again(run, AddOne(version=2))
    (task,) = rescoring.tasks
    assert (task.version_before, task.version, task.answers) == (1, 2, 6)
    assert task.changes == {"wrong → correct": 1, "unscored → correct": 1}
    assert task.headline_before.value == 0.8
    assert task.headline.value == 1.0
    assert set(rescoring.report.tasks[0].metrics) == {"parts"}
    assert rescoring.report == summarise(run)
    assert msgspec.json.decode(run.report_path.read_bytes(), type=type(before)) == summarise(run)
    assert run.journal_path.read_bytes().startswith(lines)
    assert len(records(run, SampleRecord)) == 6
    assert len(records(run, ScoreRecord)) == 12
    assert [r.version for r in records(run, DatasetRecord)] == [1, 2]


async def test_a_repaired_end_is_noted(layout):
    """By rescore as by resume, and the bytes are kept."""
    run = new_run(layout)
    await run_it(run, AddOne(version=1))
    with run.journal_path.open("ab") as file:
        file.write(b'{"type": "sco')
    await score_again(run, AddOne(version=2))
    (repair,) = records(run, RepairRecord)
    assert repair.size == 13
    assert (run.folder / repair.kept).read_bytes() == b'{"type": "sco'


async def test_the_run_goes_on_under_the_new_scoring(layout):
    """An incomplete run is scored as far as it was answered; resuming takes the new version."""
    run = new_run(layout)
    halting = Halting()
    work = asyncio.create_task(run_it(run, Off(version=1), sampler=halting))
    await halting.halted.wait()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert run.info.status is RunStatus.INTERRUPTED
    rescoring = await score_again(run, AddOne(version=2))
    assert not rescoring.report.complete
    assert rescoring.tasks[0].answers == 3
    with pytest.raises(ConfigurationError, match="enginehouse rescore"):
        await run_it(run, Off(version=1))
    sampler = FakeSampler()
    report = await run_it(run, AddOne(version=2), sampler=sampler)
    assert report.complete
    assert len(sampler.requests) == 3
    assert report.tasks[0].outcomes["correct"] == 6


class Halting(FakeSampler):
    """Answers three requests of six, and `halted` when the others wait."""

    def __init__(self) -> None:
        super().__init__()
        self.halted = asyncio.Event()
        self._waiting = 0

    async def sample(self, request):
        """Wait endlessly after three."""
        if len(self.requests) >= 3:
            self._waiting += 1
            if self._waiting == 3:
                self.halted.set()
            await asyncio.Event().wait()
        return await super().sample(request)


async def test_a_rescoring_that_was_killed_is_completed(layout, monkeypatch):
    """By resuming: no score of the old version counts, and none is missing."""
    run = new_run(layout)
    await run_it(run, Off(version=1))
    await score_again(run, AddOne(version=2))
    whole = run.journal_path.read_bytes().splitlines(keepends=True)
    run.journal_path.write_bytes(b"".join(whole[:-4]))  # as a kill would leave it
    assert summarise(run).tasks[0].outcomes["correct"] == 2
    assert not summarise(run).complete
    sampler = FakeSampler()
    report = await run_it(run, AddOne(version=2), sampler=sampler)
    assert report.complete
    assert report.tasks[0].outcomes["correct"] == 6
    assert sampler.requests == []


async def test_a_rescoring_that_is_stopped_leaves_no_report_of_the_old_scores(layout, monkeypatch):
    """Whatever stops it, and wherever: a report is there again when all is scored."""
    run = new_run(layout)
    await run_it(run, Off(version=1))

    def stopped(report):
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_report", stopped)
        with pytest.raises(RuntimeError):
            await score_again(run, AddOne(version=2))
    assert summarise(run).complete
    assert not run.report_path.exists()
    await score_again(run, AddOne(version=2))
    assert run.report_path.exists()


class OtherPrompt(AddOne):
    """Asks something else."""

    def ask(self, item):
        """In another tone."""
        question = super().ask(item)
        (turn,) = question.prompt.messages
        changed = msgspec.structs.replace(turn, content=turn.content + " Please.")
        return msgspec.structs.replace(
            question, prompt=msgspec.structs.replace(question.prompt, messages=(changed,))
        )


class OtherStop(AddOne):
    """Stops elsewhere."""

    def ask(self, item):
        """At a full stop."""
        return msgspec.structs.replace(super().ask(item), stop=(".",))


@pytest.mark.parametrize(
    ("task", "size", "why"),
    [
        (OtherPrompt(version=2), 6, "another prompt"),
        (OtherStop(version=2), 6, "other stop texts"),
        (AddOne(version=2), 5, "5 items"),
    ],
)
async def test_a_task_that_asks_something_else_is_refused(layout, task, size, why):
    """Only the scoring may differ; the journal is as it was."""
    run = new_run(layout)
    await run_it(run, AddOne())
    before = run.journal_path.read_bytes()
    with pytest.raises(ConfigurationError) as caught:
        await score_again(run, task, size=size)
    assert why in caught.value.why
    assert run.journal_path.read_bytes() == before
    assert run.info.status is RunStatus.COMPLETE


async def test_other_items_are_refused(layout):
    """Even with the same prompts."""
    run = new_run(layout)
    await run_it(run, AddOne())
    data = dataset(6)
    renamed = msgspec.structs.replace(
        data, items=[Item(id=f"other{i}", data=item.data) for i, item in enumerate(data.items)]
    )
    with pytest.raises(ConfigurationError, match="no longer"):
        await rescore(SPEC, tasks=plan_tasks(SPEC, {"addone": (AddOne(), renamed)}), run=run)


async def test_a_corrected_right_answer_changes_scores(layout):
    """Data may differ as long as the questions do not."""
    run = new_run(layout)
    await run_it(run, AddOne())
    corrected = msgspec.structs.replace(dataset(6), digest="e" * 64)

    class Corrected(AddOne):
        def score_text(self, item, text):
            return Score(outcome=Outcome.WRONG)

    tasks = plan_tasks(SPEC, {"addone": (Corrected(), corrected)})
    rescoring = await rescore(SPEC, tasks=tasks, run=run)
    assert rescoring.tasks[0].changes == {"correct → wrong": 6}
    assert rescoring.report.tasks[0].digest == "e" * 64
    with pytest.raises(ConfigurationError):
        compare_runs(run, await other_run(layout))


async def other_run(layout):
    """Another run of the same task."""
    run = new_run(layout)
    await run_it(run, AddOne())
    return run


async def test_choices_are_scored_again_by_the_same_version_only(layout):
    """Their prompts are journaled as tokens, which cannot be compared."""
    run = new_run(layout)
    await run_it(run, PickFirst())
    rescoring = await score_again(run, PickFirst())
    assert rescoring.tasks[0].changes == {}
    with pytest.raises(ConfigurationError, match="no longer"):
        await score_again(run, PickFirst(version=2))


JUDGE = """
    import os

    def judge(text, item):
        if item["n"] == 1:
            while True:
                pass
        if item["n"] == 2:
            os._exit(1)
        return int(text) == item["n"] + 1
"""


class Judged(AddOne):
    """Scored by a program."""

    def __init__(self, folder, *, version=1) -> None:
        super().__init__(version=version)
        self._metric = load_metric("m:judge", folder=folder, seconds=1.0)

    def score_text(self, item, text):
        """By the function."""
        arguments = {"text": text, "item": item.data}
        return ScoringCall(program=self._metric.program, arguments=arguments)


@pytest.mark.slow
async def test_a_run_that_hangs_on_an_answer_goes_on(layout, tmp_path):
    """It ends with two unscored answers; once the metric is corrected they are scored."""
    run = new_run(layout)
    (tmp_path / "m.py").write_text(textwrap.dedent(JUDGE))
    report = await run_it(run, Judged(tmp_path), size=40)
    assert report.complete
    assert report.tasks[0].outcomes["unscored"] == 2
    assert report.tasks[0].outcomes["correct"] == 38
    kinds = {r.item: r.failure.error for r in records(run, ScoreRecord) if r.failure}
    assert kinds == {"q1": "ScoringTimeoutError", "q2": "ScoringError"}
    (tmp_path / "m.py").write_text("def judge(text, item): return int(text) == item['n'] + 1\n")
    rescoring = await score_again(run, Judged(tmp_path, version=2), size=40)
    assert rescoring.tasks[0].changes == {"unscored → correct": 2}


@pytest.mark.slow
async def test_a_journal_whose_last_answer_was_never_scored_is_resumed(layout, tmp_path):
    """As a run leaves it that was killed while it hung."""
    run = new_run(layout)
    (tmp_path / "m.py").write_text(textwrap.dedent(JUDGE))
    await run_it(run, Judged(tmp_path), size=4)
    lines = run.journal_path.read_bytes().splitlines(keepends=True)
    run.journal_path.write_bytes(b"".join(line for line in lines if b'"score"' not in line))
    sampler = FakeSampler()
    report = await run_it(run, Judged(tmp_path), size=4, sampler=sampler)
    assert report.complete
    assert sampler.requests == []
    assert report.tasks[0].outcomes["unscored"] == 2


async def test_a_score_that_cannot_be_written_is_not_passed_over(layout, tmp_path, monkeypatch):
    """A disk that is full when the last answers have been judged leaves the run unfinished."""
    run = new_run(layout)
    (tmp_path / "m.py").write_text("def judge(text, item): return True\n")
    await run_it(run, Judged(tmp_path), size=3)
    append = Journal.append

    def full(journal, record):
        if isinstance(record, ScoreRecord):
            raise StoreError("the disk is full")
        return append(journal, record)

    score = records(run, ScoreRecord)[0]

    async def judged_at_once(pending, processes):
        return score

    monkeypatch.setattr(Journal, "append", full)
    monkeypatch.setattr("enginehouse.evaluation.runner.finish_score", judged_at_once)
    with pytest.raises(StoreError):
        await score_again(run, Judged(tmp_path, version=2), size=3, timings=Timings(breath=-1.0))


@pytest.mark.slow
async def test_a_truncated_answer_is_truncated_even_if_it_cannot_be_scored(layout, tmp_path):
    """What is known of it does not depend on its score."""
    run = new_run(layout)
    (tmp_path / "m.py").write_text(textwrap.dedent(JUDGE))

    class Cut(FakeSampler):
        async def sample(self, request):
            response = await super().sample(request)
            completion = msgspec.structs.replace(response.completions[0], finish_reason="length")
            return msgspec.structs.replace(response, completions=(completion,))

    report = await run_it(run, Judged(tmp_path), size=3, sampler=Cut(solve))
    assert report.tasks[0].outcomes["truncated"] == 3


async def test_no_process_is_left(layout, tmp_path, monkeypatch):
    """Neither after a run nor after one that was cancelled while it scored."""
    started, begun = [], asyncio.Event()
    start = processes_module._Process.start

    async def noted(program, *, grace):
        process = await start(program, grace=grace)
        started.append(process)
        begun.set()
        return process

    monkeypatch.setattr(processes_module._Process, "start", noted)
    (tmp_path / "m.py").write_text("def judge(text, item):\n    while True: pass\n")
    work = asyncio.create_task(run_it(new_run(layout), Judged(tmp_path), size=3))
    await begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert [process._child.poll() is None for process in started] == [False]
