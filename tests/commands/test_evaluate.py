"""`enginehouse.evaluate` and what is stored of a configuration."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from tests.support.command_line import House, journaled, sums

import enginehouse
from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import resolved_yaml, resume_evaluation, run_evaluation
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    ModelError,
    ProvisioningError,
    RunLockedError,
    ServerGoneError,
    StartError,
    StoreError,
    TaskError,
    TlsError,
    UnauthorizedError,
    UnsupportedError,
)
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import parse
from enginehouse.processes.sandbox import Sandbox
from enginehouse.results.summary import Progress, Report
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.store.runs import RunStatus, list_runs, open_run
from enginehouse.testing.fake_engine import running_fake_engine


def environment(house: House, canned: dict[str, str], **more: str) -> dict[str, object]:
    """Settings of a server with these answers."""
    name, _, path = house.answers(canned).partition("=")
    return {"env_vars": {name: path} | more, "max_model_len": 512}


@pytest.mark.slow
async def test_a_model_on_tasks(house: House):
    """The report is returned and stored; progress is reported; the server is gone."""
    items, canned = sums(right=6, wrong=2, unparsable=2)
    progress: list[Progress] = []
    report = await enginehouse.evaluate(
        str(house.model()),
        tasks=[str(house.task(items)), "instructions"],
        limit=10,
        server=environment(house, canned),
        progress=progress.append,
    )
    first, second = report.tasks
    assert first.headline is not None
    assert first.headline.value == 0.6
    assert (first.subset, second.subset) == (False, True)
    assert second.samples == 10
    assert report.complete
    assert (progress[-1].done, progress[-1].total) == (20, 20)
    (run,) = list_runs(Layout.from_environment())
    assert (run.id, run.status) == (report.run, RunStatus.COMPLETE)
    house.nothing_left()


async def test_a_task_that_the_engine_cannot_answer_starts_nothing(house: House, tmp_path: Path):
    """Neither a server nor a run; the error says where to see which engines can."""
    (tmp_path / "items.jsonl").write_text('{"question": "1?", "options": ["a", "b"], "key": 0}\n')
    task = tmp_path / "pick.yaml"
    task.write_text(
        "name: pick\ndata: items.jsonl\nprompt: '{{ question }}'\nmetric: choice\n"
        "choices: options\nanswer: key\n"
    )
    said: list[str] = []
    with pytest.raises(UnsupportedError, match="task pick") as error:
        await enginehouse.evaluate(
            str(house.model()), tasks=[str(task)], engine="llamacpp", notify=said.append
        )
    assert "prompt_logprobs" in str(error.value)
    assert "`enginehouse engines`" in str(error.value)
    assert said == []
    assert list_runs(Layout.from_environment()) == []


@pytest.mark.slow
async def test_two_at_once(house: House):
    """Two evaluations in one process, each with a server of its own, do not mix."""
    items, canned = sums(right=3, wrong=1)
    path, task = str(house.model()), str(house.task(items))
    settings = {"tasks": [task], "server": environment(house, canned)}
    reports = await asyncio.gather(*(enginehouse.evaluate(path, **settings) for _ in range(2)))
    assert [report.tasks[0].headline.value for report in reports if report.tasks[0].headline] == [
        0.75,
        0.75,
    ]
    assert len({report.run for report in reports}) == 2
    assert len({report.provenance[0].base_url for report in reports}) == 2


@pytest.mark.slow
async def test_cancelled_and_gone_on_with(house: House):
    """A cancelled evaluation stops its server; the rest is asked on resume, once."""
    items, canned = sums(right=8)
    server = environment(house, canned, VLLM_FAKE_TOKEN_LATENCY="0.02")
    answered = asyncio.Event()

    def progress(state: Progress) -> None:
        if state.done >= 2:
            answered.set()

    work = asyncio.create_task(
        enginehouse.evaluate(
            str(house.model()),
            tasks=[str(house.task(items))],
            server=server,
            concurrency=1,
            progress=progress,
        )
    )
    await asyncio.wait_for(answered.wait(), 60)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    house.nothing_left()
    layout = Layout.from_environment()
    (run,) = list_runs(layout)
    assert run.status is RunStatus.INTERRUPTED
    notes: list[str] = []
    report = await resume_evaluation(run.id, Context(layout=layout, notify=notes.append))
    assert report.complete
    assert report.tasks[0].outcomes["correct"] == 8
    assert set(journaled(Path(report.folder)).samples.values()) == {1}


@pytest.mark.slow
async def test_a_run_is_resumed_by_one_at_a_time(house: House):
    """Of two resumes in one process, the second is refused."""
    items, canned = sums(right=2)
    settings = {"tasks": [str(house.task(items))], "server": environment(house, canned)}
    whole = await enginehouse.evaluate(str(house.model()), **settings)
    journal = Path(whole.folder) / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]))  # its answers are lost
    layout = Layout.from_environment()
    (run,) = list_runs(layout)
    results = await asyncio.gather(
        *(resume_evaluation(run.id, Context(layout=layout)) for _ in range(2)),
        return_exceptions=True,
    )
    assert {type(result) for result in results} == {Report, RunLockedError}


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True])
async def test_a_machine_without_a_sandbox_is_told_of_once(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,  # noqa: FBT001
):
    """If code that is not ours scores, and the user has not said that it may do anything."""
    none = Sandbox(problem="there is none", fix="install one")
    monkeypatch.setattr("enginehouse.commands.evaluate.find_sandbox", lambda: none)
    items, canned = sums(right=2)
    house.write("mine.py", "def judge(text, item):\n    return item['right'] in text\n")
    task = house.task(items, metric="mine:judge", trusted=trusted)
    notes: list[str] = []
    report = await enginehouse.evaluate(
        str(house.model()),
        tasks=[str(task)],
        server=environment(house, canned),
        notify=notes.append,
    )
    assert report.tasks[0].outcomes["correct"] == 2
    told = [note for note in notes if "there is none" in note]
    assert len(told) == (0 if trusted else 1)
    assert all("the metric mine:judge" in note and "install one" in note for note in told)


@pytest.mark.slow
async def test_too_many_failed_is_no_exception(house: House):
    """A task without a headline says why; what it means is the caller's to judge."""
    items, canned = sums(right=3, failed=1)
    report = await enginehouse.evaluate(
        str(house.model()), tasks=[str(house.task(items))], server=environment(house, canned)
    )
    assert report.tasks[0].headline is None
    assert "1 of 4 samples failed (25.0%)" in (report.tasks[0].no_headline or "")


async def test_a_server_of_somebody_else(house: House):
    """With url= no engine environment is needed."""
    items, canned = sums(right=2)
    task = str(house.task(items))
    async with running_fake_engine(model="theirs", answers=canned) as handle:
        report = await enginehouse.evaluate(url=handle.url, tasks=[task])
    assert report.tasks[0].outcomes["correct"] == 2
    assert report.model == "theirs"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"limt": 3}, "did you mean 'limit'?"),
        ({"server": {"dtyp": "auto"}}, "did you mean 'dtype'?"),
        ({"tasks": []}, "'tasks'"),
        ({"model": None}, "give a model (or path), or the url of a server"),
        ({"tasks": ["gsm9k"]}, "did you mean 'gsm8k'?"),
    ],
)
async def test_what_is_wrong_is_raised(house: House, settings: dict[str, object], said: str):
    """As on the command line, before anything is stored or started."""
    values = {"model": "tiny", "tasks": ["instructions"]} | settings
    with pytest.raises(ConfigurationError) as caught:
        await enginehouse.evaluate(**values)
    assert said in str(caught.value)
    assert house.runs == []


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("PGPASSWORD", True),
        ("OPENAI_APIKEY", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("hf_token", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("VLLM_KEYED_CACHE", False),
    ],
)
def test_which_variables_are_secrets(name: str, secret: bool):  # noqa: FBT001
    """A name that ends like a secret's is one; settings that only mention tokens are kept."""
    values = {"model": "m", "tasks": ["gsm8k"], "server": {"env_vars": {name: "the-value"}}}
    text = resolved_yaml(parse(EvaluationConfig, values, origin="test"))
    assert ("the-value" not in text) == secret


def test_the_resolved_configuration_is_whole_and_has_no_secret():
    """It parses to the same configuration, less the secrets, which its head names."""
    config = parse(
        EvaluationConfig,
        {
            "model": "org/name",
            "tasks": ["gsm8k", {"name": "instructions", "limit": 3}],
            "system": "Grüß Gott: {{ x }}\n- no",
            "server": {
                "api_key": "s1",
                "max_model_len": 4096,
                "extra_args": "--max-logprobs 5",
                "env_vars": {"HF_TOKEN": "s2", "DB_PASSWORD": "s3", "OMP_NUM_THREADS": "2"},
            },
        },
        origin="test",
    )
    text = resolved_yaml(config)
    assert not [secret for secret in ("s1", "s2", "s3") if secret in text]
    assert "api_key, env_vars.DB_PASSWORD, env_vars.HF_TOKEN" in text.splitlines()[1]
    again = parse(EvaluationConfig, yaml.safe_load(text), origin="again")
    assert again.plan.server.env_vars == {"OMP_NUM_THREADS": "2"}
    assert again.plan.server.api_key is None
    kept = {"api_key": None, "env_vars": again.plan.server.env_vars}
    server = config.plan.server.model_copy(update=kept)
    plan = config.plan.model_copy(update={"server": server})
    assert again == config.model_copy(update={"plan": plan})


@pytest.mark.parametrize(
    ("error", "begun", "said"),
    [
        (asyncio.CancelledError(), False, "enginehouse resume"),
        (ProvisioningError("no network"), False, "enginehouse resume"),
        (StartError("no memory"), False, None),
        (TlsError("speaks TLS"), False, None),
        (ConnectionFailedError("nothing answers"), False, "enginehouse resume"),
        (StartError("no memory"), True, "enginehouse resume"),
        (ServerGoneError("gone"), True, "enginehouse resume"),
        (UnauthorizedError("no key"), True, "enginehouse resume"),
        (StoreError("disk full"), True, "enginehouse resume"),
        (TaskError("broken"), True, "enginehouse show"),
        (ConfigurationError("other data"), True, "enginehouse show"),
        (RunLockedError("in use"), True, "enginehouse show"),
        (ModelError("no model"), False, None),
    ],
)
async def test_resume_is_named_where_it_can_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    begun: bool,  # noqa: FBT001
    said: str | None,
):
    """What is wrong with options, task or model is wrong again when the run is resumed."""
    layout = Layout.from_environment()

    @contextlib.asynccontextmanager
    async def opening(*_: object, **__: object) -> AsyncIterator[Deployment]:
        (info,) = list_runs(layout)
        if begun:
            open_run(layout, info.id).journal_path.touch()
        raise error
        yield

    (tmp_path / "items.jsonl").write_text('{"question": "1?", "answer": "1"}\n')
    task = tmp_path / "one.yaml"
    task.write_text(
        "name: one\ndata: items.jsonl\nprompt: '{{ question }}'\nmetric: exact_match\n"
        "answer: answer\n"
    )
    monkeypatch.setattr("enginehouse.commands.evaluate.open_deployment", opening)
    config = parse(EvaluationConfig, {"model": "m", "tasks": [str(task)]}, origin="test")
    told: list[str] = []
    with pytest.raises(type(error)):
        await run_evaluation(config, Context(layout=layout, notify=told.append))
    advice = [line for line in told if "enginehouse" in line]
    assert [said in line for line in advice] == ([True] if said else [])
