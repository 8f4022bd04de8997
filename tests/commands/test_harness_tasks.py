"""Tasks of a harness in a run: evaluated, resumed, shown, compared and refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import aiohttp
import msgspec
import pytest
from tests.support.command_line import House, sums
from tests.support.foreign_server import fake_engine
from tests.support.tiny_adapters import write_adapter

import enginehouse
from enginehouse.commands.configuration import EvaluationConfig, EvaluationSettings
from enginehouse.commands.evaluate import rescore_evaluation, resume_evaluation
from enginehouse.commands.evaluate_together import run_together
from enginehouse.commands.harness_tasks import harness_settings
from enginehouse.core.errors import ConfigurationError, HarnessError, UnknownNameError
from enginehouse.deployment.configuration import parse
from enginehouse.evaluation import EvaluationSpec, TaskSpec, find_sample, summarise
from enginehouse.evaluation.compare import compare_runs
from enginehouse.evaluation.gate import judge
from enginehouse.evaluation.policy import Policy
from enginehouse.harnesses.base import HarnessEndpoint
from enginehouse.jobs.exporters.figures import read_figures
from enginehouse.results.gate import GateVerdict
from enginehouse.results.summary import HarnessWork, Progress, Report, TaskReport
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.store.runs import Run, RunStatus, list_runs, open_run
from enginehouse.testing.fake_engine.process import running_fake_engine
from enginehouse.testing.fake_harness import FakeHarness, with_fake_harness


@pytest.fixture(autouse=True)
def _fake_harness() -> Iterator[None]:
    with with_fake_harness():
        yield


def canned(*right: int) -> dict[str, str]:
    """Answers to the fake harness's sums, of which these are right."""
    answers = {f"^{n} \\+ 1 = ": f"{n + 1} is it" if n in right else "no idea" for n in range(12)}
    return answers | {"Say something": "three words here"}


async def evaluate(
    house: House, *tasks: Any, right: tuple[int, ...] = (0, 1, 2, 3), **settings: Any
) -> Report:
    """Evaluate on a fake engine."""
    name, _, path = house.answers(canned(*right) | settings.pop("canned", {})).partition("=")
    server = {"env_vars": {name: path}, "max_model_len": 512}
    return await enginehouse.evaluate(
        str(house.model()), tasks=list(tasks), server=server, **settings
    )


def the_run() -> Run:
    """The only run there is."""
    (info,) = list_runs(Layout.from_environment())
    return open_run(Layout.from_environment(), info.id)


def figures(task: TaskReport) -> tuple[float | None, HarnessWork]:
    """The headline, and what the harness said."""
    assert isinstance(task.harness, HarnessWork)
    return task.headline.value if task.headline else None, task.harness


@pytest.mark.slow
async def test_beside_a_native_task(house: House):
    """One report, with the harness's own figure, our interval, and one progress for both."""
    items, native = sums(right=3, wrong=1)
    progress: list[Progress] = []
    report = await evaluate(
        house, str(house.task(items)), "fake:sums", canned=native, progress=progress.append
    )
    assert report.complete
    ours, theirs = report.tasks
    assert (ours.task, theirs.task) == ("sums", "fake:sums")
    assert ours.headline is not None
    assert ours.headline.value == 0.75
    value, work = figures(theirs)
    assert value == pytest.approx(4 / 12)
    assert work.figures[0].value == pytest.approx(4 / 12)
    assert work.figures[0].standard_error is not None
    assert theirs.headline is not None
    assert theirs.headline.interval is not None
    assert (theirs.version, work.version, theirs.subset) == ("2.1", "1.0", False)
    assert theirs.outcomes["correct"] == 4
    assert theirs.outcomes["wrong"] == 8
    assert work.requests == 12
    assert report.throughput.requests == 4 + 12
    assert (progress[-1].done, progress[-1].total) == (16, 16)
    assert any(t.task == "fake:sums" and t.total is None for t in progress[0].tasks)
    house.nothing_left()


@pytest.mark.slow
async def test_settings_reach_the_harness(house: House):
    """Limits, repeats, system messages; defaults leave them to the harness."""
    report = await evaluate(
        house, {"name": "fake:sums", "limit": 3, "samples": 2, "system": "Be brief."}, limit=5
    )
    (task,) = report.tasks
    assert (task.items, task.samples_per_item, task.samples, task.subset) == (3, 2, 6, True)
    assert "a subset, 3 of 12 items" in report.notes[0]
    plain = await evaluate(house, "fake:sums", limit=3)
    assert plain.tasks[0].digest != task.digest


@pytest.mark.parametrize(("seed", "sent"), [(0, None), (5, 5)])
def test_a_seed_is_sent_only_if_it_was_set(seed: int, sent: int | None):
    """Otherwise lm-eval draws its few-shot examples with its own, as published figures do."""
    task = TaskSpec(name="lm-eval:piqa", harness="lm-eval", few_shot=5)
    spec = EvaluationSpec(tasks=(task,), seed=seed)
    told = harness_settings(task, spec, EvaluationSettings(tasks=["lm-eval:piqa"], seed=seed))
    assert told.seed == sent
    assert told.temperature is None


@asynccontextmanager
async def endpoints() -> AsyncIterator[list[HarnessEndpoint]]:
    """The endpoints that the fake harness is given in the block."""
    given: list[HarnessEndpoint] = []
    run = FakeHarness.run

    async def remembering(self: FakeHarness, tasks: Any, **more: Any) -> Any:
        given.append(more["endpoint"])
        return await run(self, tasks, **more)

    with patch.object(FakeHarness, "run", remembering):
        yield given


async def test_the_harness_is_told_how_long_prompts_may_be(house: House):
    """By the server, whose options are not ours where it runs elsewhere."""
    with fake_engine("--max-model-len", "640") as url:
        async with endpoints() as given:
            await enginehouse.evaluate(url=url, tasks=["fake:sums"], server={"max_model_len": 9})
    assert [endpoint.max_model_len for endpoint in given] == [640]


@pytest.mark.slow
async def test_the_harness_has_the_runs_concurrency(house: House):
    """As it was given, and 128 if it was not; a task's own comes first."""
    with fake_engine() as url:
        async with endpoints() as given:
            for own, more in ((None, {}), (None, {"concurrency": 300}), (7, {"concurrency": 300})):
                task = {"name": "fake:sums", "limit": 1, "concurrency": own}
                await enginehouse.evaluate(url=url, tasks=[task], **more)
    assert [endpoint.concurrency for endpoint in given] == [128, 300, 7]


@pytest.mark.slow
async def test_samples_are_shown(house: House):
    """Prompt, answer and target of a harness's sample."""
    await evaluate(house, "fake:sums")
    view = find_sample(the_run(), 2)
    assert (view.task, view.item, view.outcome) == ("fake:sums", "sums-1", "correct")
    assert view.exchange is not None
    assert (view.exchange.prompt, view.exchange.answer) == ("1 + 1 = ?", "2 is it")
    assert view.exchange.target == "2"


@pytest.mark.slow
async def test_a_group_and_a_scale_without_right_and_wrong(house: House):
    """The parts have the samples; a measure is the headline where there is no outcome."""
    report = await evaluate(house, "fake:both")
    assert [task.task for task in report.tasks] == ["fake:sums", "fake:lengths", "fake:both"]
    parts, lengths, group = report.tasks
    assert report.complete
    assert (group.samples, group.no_headline) == (0, None)
    assert figures(group)[1].parts == ("fake:sums", "fake:lengths")
    assert figures(parts)[1].part_of == "fake:both"
    assert lengths.outcomes["measured"] == 12
    assert lengths.headline is not None
    assert lengths.headline.value == 3.0
    assert lengths.headline.n == 12


@pytest.mark.slow
async def test_answers_that_were_cut_off_are_counted(house: House):
    """The harness scores them as they are; the report says how many there are."""
    report = await evaluate(house, {"name": "fake:sums", "max_tokens": 1}, "fake:lengths")
    cut, whole = report.tasks
    assert figures(cut)[1].truncated == 12
    assert figures(whole)[1].truncated == 0
    (note,) = (note for note in report.notes if "cut off" in note)
    assert note.startswith("fake:sums: 12 of 12 answers were cut off at the token limit")


@pytest.mark.slow
async def test_a_complete_run_asks_nothing(house: House):
    """Neither the engine nor the harness is started again."""
    first = await evaluate(house, "fake:sums")
    said: list[str] = []
    again = await resume_evaluation(first.run, Context(notify=said.append))
    assert again.tasks == first.tasks
    assert said == [f"run {first.run} is complete: nothing to ask"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "tasks",
    [
        ("fake:both", "fake:sums"),
        ("fake:sums", "fake:both"),
        ("fake:sums", "fake:all", "fake:both"),
    ],
)
async def test_a_group_and_one_of_its_parts(house: House, tasks: tuple[str, ...]):
    """The part is asked once, with its group, and is complete; both are shown and compared."""
    progress: list[Progress] = []
    lists = FakeHarness.list_tasks
    with patch.object(FakeHarness, "list_tasks", autospec=True, side_effect=lists) as listing:
        report = await evaluate(house, *tasks, progress=progress.append)
    assert listing.call_count == 1  # not again while an engine waits
    assert report.complete
    assert report.throughput.requests == 24
    assert len({task.task for task in report.tasks}) == len(report.tasks)
    by_name = {task.task: task for task in report.tasks}
    assert {*tasks} <= by_name.keys()
    assert by_name["fake:sums"].samples == by_name["fake:sums"].outcomes["correct"] + 8 == 12
    assert sum(task.samples for task in report.tasks) == 24
    assert (progress[-1].done, progress[-1].total) == (24, 24)
    again = await resume_evaluation(report.run, Context())
    assert again.tasks == report.tasks
    alone = await evaluate(house, "fake:sums")
    layout = Layout.from_environment()
    comparison = compare_runs(*(open_run(layout, r.run) for r in (report, alone)))
    (shared,) = comparison.tasks
    assert shared.task == "fake:sums"
    assert shared.headline is not None
    assert shared.headline.difference == 0


@pytest.mark.slow
async def test_a_subset_is_noted_by_the_parts_of_a_group(house: House):
    """The group has no items of its own."""
    report = await evaluate(house, "fake:both", limit=2)
    noted = [note for note in report.notes if "a subset" in note]
    assert noted == [f"fake:{part}: a subset, 2 of 12 items" for part in ("sums", "lengths")]


@pytest.mark.slow
async def test_two_groups_with_a_part_in_common(house: House):
    """What the first was answered answers the second, also if its answers were left to chance."""
    report = await evaluate(house, "fake:both", "fake:measures", temperature=1.0)
    assert report.complete
    assert report.throughput.requests == 24
    _, work = figures(report.tasks[-1])
    assert (work.requests, work.replayed) == (0, 12)
    assert sum(task.samples for task in report.tasks) == 24


@pytest.mark.slow
async def test_a_part_is_not_asked_twice_after_its_group_has_failed(house: House):
    """Its answers are in the record that the group is given when it is run again."""
    settings = {"arguments": {"end_after": 5}}
    tasks = [{"name": name, **settings} for name in ("fake:both", "fake:sums")]
    with pytest.raises(HarnessError, match="ended with"):
        await evaluate(house, *tasks, concurrency=1)
    run = the_run()
    # The fake ends once in each folder, so the part has failed, too, without asking anything new.
    assert summarise(run).tasks == ()
    report = await resume_evaluation(run.info.id, Context())
    assert report.complete
    _, work = figures(report.tasks[-1])
    assert (work.replayed, work.requests) == (5, 19)


async def test_other_settings_of_a_part_are_refused(house: House):
    """One name cannot stand for two results."""
    short = {"name": "fake:sums", "limit": 3}
    with pytest.raises(ConfigurationError, match="fake:sums") as error:
        await evaluate(house, "fake:both", short)
    assert error.value.why == "the settings differ: limit"
    with pytest.raises(ConfigurationError, match="fake:sums") as error:
        await evaluate(house, "fake:brief", "fake:sums")
    assert error.value.why == "a group has settings of its own for fake:sums"
    assert list_runs(Layout.from_environment()) == []


@pytest.mark.slow
async def test_tokens_and_requests_are_in_the_progress(house: House):
    """While a harness asks, as for native tasks, and in the report afterwards."""
    items, native = sums(right=3, wrong=1)
    progress: list[Progress] = []
    report = await evaluate(
        house, str(house.task(items)), "fake:sums", canned=native, progress=progress.append
    )
    last = progress[-1]
    assert last.requests == 4 + 12
    assert last.generated_tokens == report.throughput.generated_tokens
    assert last.tokens_per_second
    _, work = figures(report.tasks[1])
    assert work.generated_tokens >= 12
    assert work.prompt_tokens >= 12
    assert report.throughput.generated_tokens > work.generated_tokens


@pytest.mark.slow
@pytest.mark.parametrize("by_signal", [False, True])
async def test_a_harness_that_ends(house: House, *, by_signal: bool):
    """The journal says so, other tasks are run, and resume runs it again."""
    ends = {"name": "fake:sums", "arguments": {"end_after": 5, "by_signal": by_signal}}
    with pytest.raises(HarnessError, match="ended with") as error:
        await evaluate(house, ends, "fake:lengths", concurrency=1)
    assert error.value.kind == "ended"
    run = the_run()
    assert run.info.status is RunStatus.INTERRUPTED
    half = summarise(run)
    assert not half.complete
    assert [task.task for task in half.tasks] == ["fake:lengths"]
    assert any("its harness did not finish it" in note for note in half.notes)
    assert any("fake has not finished it" in note for note in half.notes)
    report = await resume_evaluation(run.info.id, Context())
    assert report.complete
    sums_again = next(task for task in report.tasks if task.task == "fake:sums")
    assert figures(sums_again)[0] == pytest.approx(4 / 12)
    assert sums_again.done == 12
    house.nothing_left()


@pytest.mark.slow
async def test_failed_samples_are_failed(house: House):
    """They are counted, leave no headline above the allowed share, and can be tried again."""
    fails = {"name": "fake:sums", "arguments": {"failed": [2, 5]}}
    report = await evaluate(house, fails, max_failed=0.5)
    (task,) = report.tasks
    assert task.outcomes["failed"] == 2
    assert task.done == task.samples == 12
    assert figures(task)[0] == pytest.approx(3 / 10)
    view = find_sample(the_run(), 3)
    assert (view.outcome, view.failure) == ("failed", "HarnessError (harness): it was told to fail")
    again = await resume_evaluation(report.run, Context(), retry_failed=True)
    assert again.tasks[0].done == 12


@pytest.mark.slow
async def test_cancelled_and_resumed(house: House):
    """A cancelled run leaves no process, and is resumed."""
    begun = asyncio.Event()

    def progress(state: Progress) -> None:
        if any(task.total for task in state.tasks):
            begun.set()

    hangs = {"name": "fake:sums", "arguments": {"hangs": True}}
    work = asyncio.create_task(evaluate(house, hangs, progress=progress))
    await asyncio.wait_for(begun.wait(), 60)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    house.nothing_left()
    assert the_run().info.status is RunStatus.INTERRUPTED


@pytest.mark.slow
async def test_runs_are_compared_and_gated(house: House):
    """Items are paired as those of native tasks; a group is compared by its parts."""
    one = await evaluate(house, "fake:both", right=(0, 1, 2))
    other = await evaluate(house, "fake:both", right=tuple(range(12)))
    layout = Layout.from_environment()
    runs = [open_run(layout, report.run) for report in (one, other)]
    comparison = compare_runs(*runs)
    parts, lengths = comparison.tasks
    assert (parts.task, lengths.task) == ("fake:sums", "fake:lengths")
    assert parts.headline is not None
    assert parts.headline.difference == pytest.approx(0.75)
    assert parts.words == "B is better"
    gate = judge(runs[0], runs[1], Policy(margin=0.05))
    assert gate.verdict is GateVerdict.FAIL
    assert {figure.task for figure in gate.figures} == {"fake:sums", "fake:lengths"}
    exported = {figure.name: figure for figure in read_figures(runs[0]).figures}
    assert exported["fake:sums/headline"].value == pytest.approx(0.25)
    own = exported["fake:sums/fake exact"]
    assert (own.value, own.harness) == (pytest.approx(0.25), "fake 1.0")
    assert own.standard_error is not None
    assert own.low == pytest.approx(0.25 - 1.96 * own.standard_error, abs=1e-4)
    assert own.high == pytest.approx(0.25 + 1.96 * own.standard_error, abs=1e-4)
    assert (own.confidence, own.method) == (0.95, "normal, from the harness's standard error")


@pytest.mark.slow
async def test_other_settings_are_not_compared(house: House):
    """Another configuration digest is other data."""
    one = await evaluate(house, "fake:sums")
    other = await evaluate(house, "fake:sums", system="Be brief.")
    layout = Layout.from_environment()
    with pytest.raises(ConfigurationError, match="different data"):
        compare_runs(*(open_run(layout, report.run) for report in (one, other)))


@pytest.mark.slow
async def test_rescoring_leaves_them_alone(house: House):
    """A harness's scores are its own."""
    items, native = sums(right=2)
    report = await evaluate(house, str(house.task(items)), "fake:sums", canned=native)
    rescoring = await rescore_evaluation(report.run, Context())
    assert [task.task for task in rescoring.tasks] == ["sums"]
    assert rescoring.report.tasks == report.tasks
    alone = await evaluate(house, "fake:sums")
    with pytest.raises(ConfigurationError, match="scored here"):
        await rescore_evaluation(alone.run, Context())


@pytest.mark.parametrize(
    ("task", "settings", "error", "words"),
    [
        ("fake:sumz", {}, HarnessError, "no task 'sumz'"),
        ("fake:nothing.py@sums", {}, HarnessError, "there is no file nothing.py"),
        ("fake:sums.yaml", {}, HarnessError, "no task 'sums.yaml'"),
        ("nothing:sums", {}, UnknownNameError, "nothing"),
        ("fake:sums", {"top_k": 5}, ConfigurationError, "no top_k"),
        ({"name": "fake:sums", "data": "x.jsonl"}, {}, ConfigurationError, "no effect"),
        ({"name": "gsm8k", "few_shot": 3}, {}, ConfigurationError, "few_shot"),
        ("gsm8k", {"harness_version": "1"}, ConfigurationError, "harness_version"),
        ("fake:sums", {"harness_version": "9"}, ConfigurationError, "not provisioned"),
    ],
)
async def test_refused_before_anything_starts(
    house: House, task: Any, settings: dict[str, Any], error: type[Exception], words: str
):
    """No server, no run."""
    said: list[str] = []
    with pytest.raises(error, match=words):
        await evaluate(house, task, notify=said.append, **settings)
    assert list_runs(Layout.from_environment()) == []
    assert not any("server" in line for line in said)


@pytest.mark.parametrize(("task", "why"), [("choices", None), ("exam", "choices is a part of it")])
async def test_choices_on_an_engine_without_log_probabilities(
    house: House, task: str, why: str | None
):
    """They are refused before anything starts, also where only a part of a group has them."""
    with pytest.raises(HarnessError, match=f"fake:{task} ") as raised:
        await evaluate(house, f"fake:{task}", engine="sglang")
    assert (raised.value.kind, raised.value.why) == ("needs_logprobs", why)
    assert list_runs(Layout.from_environment()) == []


@pytest.mark.slow
async def test_a_half_written_task_is_run_again(house: House):
    """A kill while results are journaled loses nothing and counts nothing twice."""
    report = await evaluate(house, "fake:both")
    run = the_run()
    lines = run.journal_path.read_bytes().splitlines(keepends=True)
    for kept in (len(lines) - 1, len(lines) - 2, 20, 4):
        run.journal_path.write_bytes(b"".join(lines[:kept]))
        run.report_path.unlink(missing_ok=True)
        run.update(status=RunStatus.RUNNING)
        assert not summarise(run).complete
        again = await resume_evaluation(run.info.id, Context())
        assert again.complete
        assert {t.task: t.outcomes for t in again.tasks} == {
            t.task: t.outcomes for t in report.tasks
        }


def asked_models(run: Run) -> set[str]:
    """The models that a run's harness tasks named in their requests."""
    lines = (
        msgspec.json.decode(line)
        for file in run.folder.glob("harnesses/*/answers/*.jsonl")
        for line in file.read_bytes().splitlines()
    )
    return {msgspec.json.decode(line["request"])["model"] for line in lines if "request" in line}


def answers_of(run: Run) -> list[str]:
    """What a run's first samples were answered."""
    views = (find_sample(run, number) for number in range(1, 4))
    return [view.exchange.answer or "" for view in views if view.exchange is not None]


@pytest.mark.slow
async def test_a_model_and_its_adapter_on_one_server(house: House):
    """Each run's harness asks the one that the run is about, and so does its resumption."""
    model = house.model()
    adapter = write_adapter(house.work / "step-1", seed=1)
    settings = {"tasks": ["fake:sums"], "server": {"max_model_len": 512}}
    configs = [
        parse(EvaluationConfig, {"model": str(model), **settings, **more}, origin="the test")
        for more in ({}, {"adapter": str(adapter)})
    ]
    together = await run_together(configs, Context())
    layout = Layout.from_environment()
    base, adapted = (open_run(layout, report.run) for report in together.reports)
    (who,) = together.reports[1].provenance
    assert who.adapter_digest is not None
    assert who.model == f"step-1@{who.adapter_digest[:12]}"
    assert asked_models(adapted) == {who.model}
    assert asked_models(base) == {model.name}
    assert answers_of(base) != answers_of(adapted)
    (compared,) = together.comparisons[0].tasks
    assert compared.task == "fake:sums"

    before = answers_of(adapted)
    adapted.journal_path.write_bytes(
        b"".join(adapted.journal_path.read_bytes().splitlines(keepends=True)[:4])
    )
    adapted.update(status=RunStatus.RUNNING)
    again = await resume_evaluation(adapted.info.id, Context())
    assert again.complete
    _, work = figures(again.tasks[0])
    assert (work.replayed, work.requests) == (12, 0)
    assert answers_of(adapted) == before
    house.nothing_left()


@pytest.mark.slow
async def test_an_adapter_on_a_server_that_is_not_ours(house: House):
    """It is loaded for the run, and the harness asks it."""
    adapter = write_adapter(house.work / "step-1", seed=1)
    async with running_fake_engine("--enable-lora") as engine:
        report = await enginehouse.evaluate(
            None, tasks=["fake:sums"], url=engine.url, adapter=str(adapter)
        )
        async with aiohttp.ClientSession(engine.url) as client, client.get("/v1/models") as reply:
            assert [one["id"] for one in (await reply.json())["data"]] == ["fake-model"]
    (who,) = report.provenance
    assert asked_models(the_run()) == {who.model}
    assert who.model.startswith("step-1")
