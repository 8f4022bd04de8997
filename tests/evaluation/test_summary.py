from __future__ import annotations

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

from enginehouse.core.errors import BadRequestError, ConfigurationError, StoreError
from enginehouse.evaluation import (
    EvaluationSpec,
    TaskSpec,
    evaluate,
    find_sample,
    plan_tasks,
    summarise,
)
from enginehouse.evaluation.records import Record, ScoreRecord
from enginehouse.statistics.intervals import wilson
from enginehouse.store.journal import read_journal


async def evaluated(layout, *, samples=1, reply=solve, size=10, limit=None):
    """A run of AddOne and PickFirst."""
    spec = EvaluationSpec(
        tasks=(TaskSpec(name="addone", limit=limit), TaskSpec(name="pick", limit=2)),
        samples=samples,
        temperature=1.0,
        seed=3,
        max_failed=1.0,
    )
    run = new_run(layout, "addone", "pick")
    data = {"addone": (AddOne(), dataset(size)), "pick": (PickFirst("pick"), dataset(5))}
    tasks = plan_tasks(spec, data)
    report = await evaluate(
        spec, tasks=tasks, sampler=FakeSampler(reply), provenance=PROVENANCE, run=run
    )
    return run, report


async def test_headline_and_wilson(layout):
    """7 of 10 right, one sample each: 70 % with Wilson's interval."""
    _, report = await evaluated(layout, reply=lambda r: "0" if question(r) < 3 else solve(r))
    headline = report.tasks[0].headline
    assert headline.value == pytest.approx(0.7)
    assert headline.interval == wilson(7, 10)


async def test_repeats_are_clustered(layout):
    """With repeats the interval is bootstrapped over items, and every sample counts."""
    _, report = await evaluated(
        layout, samples=4, reply=lambda r: "0" if question(r) % 2 else solve(r)
    )
    task = report.tasks[0]
    assert (task.samples, task.items, task.samples_per_item) == (40, 10, 4)
    assert task.headline.value == 0.5
    assert task.headline.interval.method == "bootstrap by item"
    half = (task.headline.interval.high - task.headline.interval.low) / 2
    assert half == pytest.approx(1.96 * 0.5 / 10**0.5, rel=0.25)


async def test_failures_leave_the_denominator(layout):
    """Correct / (all - failed); metrics leave the failed out as well."""

    def reply(request):
        n = question(request)
        return BadRequestError("x", status=400) if n < 4 else "0" if n < 7 else solve(request)

    _, report = await evaluated(layout, reply=reply)
    task = report.tasks[0]
    assert task.outcomes["failed"] == 4
    assert task.headline.value == pytest.approx(3 / 6)
    assert task.metrics["parts"].value == pytest.approx((3 * 1 + 3 * 2) / 12)


async def test_everything_failed(layout):
    """No denominator: no headline, no metrics, and no crash."""
    run, report = await evaluated(layout, reply=lambda _: BadRequestError("x", status=400))
    assert report.tasks[0].headline is None
    assert report.tasks[0].no_headline == "all 10 samples failed, most of them with BadRequestError"
    assert report.tasks[0].metrics == {}
    assert summarise(run) == report


async def test_subsets_are_labelled_everywhere(layout):
    """In the task's row and in the notes."""
    _, report = await evaluated(layout, limit=4)
    assert [t.subset for t in report.tasks] == [True, True]
    assert "addone: a subset, 4 of 10 items" in report.notes
    _, whole = await evaluated(layout)
    assert [t.subset for t in whole.tasks] == [False, True]


async def test_data_and_server_are_in_the_report(layout):
    """Source, licence, digest, version, model, provenance, folder and throughput."""
    run, report = await evaluated(layout)
    task = report.tasks[0]
    assert (task.source, task.licence, task.digest) == ("made here", "CC0-1.0", "d" * 64)
    assert (report.model, report.folder) == ("fake-model", str(run.folder))
    assert report.provenance == (PROVENANCE,)
    t = report.throughput
    # the fake starts a request every second, and each takes half a second
    assert (t.requests, t.prompt_tokens, t.generated_tokens) == (14, 98, 28)
    assert t.wall_seconds == pytest.approx(13.5)
    assert t.requests_per_second == pytest.approx(14 / 13.5)


async def test_report_is_json(layout):
    """It survives encoding."""
    _, report = await evaluated(layout)
    assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report


async def test_later_records_count_once(layout):
    """A score that is journaled twice is one score: the latest."""
    run, report = await evaluated(layout, samples=2)
    line = next(
        run.journal_path.read_bytes()[e.offset :].split(b"\n")[0]
        for e in read_journal(run.journal_path, Record)
        if isinstance(e.record, ScoreRecord) and e.record.task == "addone"
    )
    with run.journal_path.open("ab") as file:
        file.write(line + b"\n")
        file.write(
            line.replace(b'"correct"', b'"wrong"').replace(b"[2.0,2.0]", b"[1.0,2.0]") + b"\n"
        )
    again = summarise(run)
    assert again.tasks[0].outcomes["correct"] == report.tasks[0].outcomes["correct"] - 1
    assert sum(again.tasks[0].outcomes.values()) == 20


async def test_run_that_never_began(layout):
    """Killed while it was provisioned: a report without tasks, incomplete."""
    report = summarise(new_run(layout))
    assert (report.complete, report.tasks, report.model) == (False, (), "fake-model")


async def test_journal_of_a_later_format_is_refused(layout):
    """A journal that this version does not understand is not guessed at."""
    run, _ = await evaluated(layout)
    text = run.journal_path.read_text().replace('"format":1', '"format":2', 1)
    run.journal_path.write_text(text)
    with pytest.raises(StoreError, match="format 2"):
        summarise(run)


async def test_single_samples_are_found_by_number(layout):
    """Numbers run through tasks, items, repeats; choices show their log-likelihoods."""
    run, _ = await evaluated(
        layout,
        samples=2,
        reply=lambda r: BadRequestError("x", status=400) if question(r) == 1 else solve(r),
    )
    second = find_sample(run, 2)
    assert (second.task, second.item, second.repeat, second.total) == ("addone", "q0", 1, 22)
    assert (second.outcome, second.answer, second.measures) == ("correct", "1", {"parts": 2.0})
    failed = find_sample(run, 3)
    assert (failed.outcome, failed.failure) == ("failed", "BadRequestError (wire): x")
    choice = find_sample(run, 22)
    assert choice.task == "pick"
    assert len(choice.loglikelihoods) == 2


@pytest.mark.parametrize("number", [0, 23, -1])
async def test_number_outside_the_run(layout, number):
    """The message says which numbers there are."""
    run, _ = await evaluated(layout, samples=2)
    with pytest.raises(ConfigurationError, match="samples 1 to 22"):
        find_sample(run, number)


async def test_sample_not_asked_yet(layout):
    """An incomplete run says so for a sample that is missing."""
    run, _ = await evaluated(layout)
    lines = run.journal_path.read_bytes().splitlines(keepends=True)
    run.journal_path.write_bytes(b"".join(lines[:4]))
    with pytest.raises(ConfigurationError, match="sample 10 "):
        find_sample(run, 10)
