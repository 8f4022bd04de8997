"""Evaluations whose answers a second model scores, each with a server of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.command_line import House

import enginehouse
from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import (
    rescore_evaluation,
    resolved_yaml,
    resume_evaluation,
)
from enginehouse.core.errors import ConfigurationError, ServerGoneError
from enginehouse.deployment.configuration import parse
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.store.runs import RunStatus, list_runs
from enginehouse.testing.fake_engine import running_fake_engine

ANSWERS = {"capital of France": "Paris", "capital of Spain": "Lisbon"}
VERDICTS = {"Lisbon": "VERDICT: INCORRECT", "Paris": "It fits. VERDICT: CORRECT"}


@pytest.fixture
def task(house: House) -> Path:
    """Two questions, scored by a judge."""
    items = [
        {"ask": f"What is the capital of {land}?", "right": city}
        for land, city in (("France", "Paris"), ("Spain", "Madrid"))
    ]
    judge = {"prompt": "{{ response }}?"}
    return house.task(items, name="capitals", metric="judge", judge=judge)


def judge_at(url: str, **more: Any) -> dict[str, Any]:
    """A judge that runs already."""
    return {"url": url, **more}


@pytest.mark.slow
async def test_a_judge_that_runs_already(house: House, task: Path, tmp_path: Path):
    """It is asked with its own sampling, about the answers only; nothing is left."""
    seen = tmp_path / "seen.jsonl"
    async with (
        running_fake_engine(answers=ANSWERS) as engine,
        running_fake_engine(
            answers=VERDICTS, model="grader", env={"VLLM_FAKE_REQUESTS": str(seen)}
        ) as grader,
    ):
        report = await enginehouse.evaluate(
            url=engine.url,
            tasks=[str(task)],
            judge=judge_at(grader.url, temperature=0.5, max_tokens=40),
        )
    (result,) = report.tasks
    assert (result.outcomes["correct"], result.outcomes["wrong"]) == (1, 1)
    assert result.judge == "grader"
    bodies = [json.loads(line)["body"] for line in seen.read_text().splitlines()]
    assert sorted(b["messages"][-1]["content"] for b in bodies) == ["Lisbon?", "Paris?"]
    assert {(b["temperature"], b["max_tokens"]) for b in bodies} == {(0.5, 40)}
    shown = house.run("show", report.run)
    assert "judged by" in shown.out
    assert "grader" in shown.out
    first = house.run("show", report.run, "--sample", "1")
    assert "VERDICT: CORRECT" in first.out


@pytest.mark.slow
async def test_a_judge_with_a_server_of_its_own(house: House, task: Path):
    """Both are started for the run, and stopped after it."""
    # the judge's prompts are the answers with a question mark
    canned = {"^Paris": VERDICTS["Paris"], "^Lisbon": VERDICTS["Lisbon"], **ANSWERS}
    name, _, answers = house.answers(canned).partition("=")
    server = {"env_vars": {name: answers}, "max_model_len": 512}
    report = await enginehouse.evaluate(
        str(house.model()),
        tasks=[str(task)],
        server=server,
        judge={"model": str(house.model("grader")), "server": server, "max_tokens": 100},
    )
    assert report.complete
    assert report.tasks[0].outcomes["correct"] == 1
    assert isinstance(report.judges, tuple)
    assert report.judges[0].base_url != report.provenance[0].base_url
    house.nothing_left()


@pytest.mark.slow
async def test_a_judge_that_is_gone_is_asked_on_a_resume(house: House, task: Path):
    """The answers are kept, and the model need not even run."""
    async with (
        running_fake_engine(
            answers=VERDICTS, model="grader", faults=[{"fault": "reset", "first": 1}]
        ) as grader,
        running_fake_engine(answers=ANSWERS) as engine,
    ):
        with pytest.raises(ServerGoneError):
            await enginehouse.evaluate(
                url=engine.url,
                tasks=[str(task)],
                judge=judge_at(grader.url, max_retries=0),
                concurrency=1,
            )
        (run,) = list_runs(Layout.from_environment())
        assert run.status is RunStatus.INTERRUPTED
        report = await resume_evaluation(run.id, Context())
    assert report.complete
    assert report.tasks[0].outcomes["correct"] == 1


async def test_without_a_judge_there_is_no_run(house: House, task: Path):
    """Nothing is asked first, and scored never."""
    with pytest.raises(ConfigurationError):
        await enginehouse.evaluate(url="http://127.0.0.1:9", tasks=[str(task)])
    assert not list_runs(Layout.from_environment())


@pytest.mark.slow
async def test_resuming_and_rescoring_open_the_judge_again(house: House, task: Path):
    """An answer that the judge left unscored is judged by --retry-failed; the model rests."""
    async with running_fake_engine(
        answers={"Paris": VERDICTS["Paris"], "Lisbon": "Who knows?"}, model="grader"
    ) as grader:
        async with running_fake_engine(answers=ANSWERS) as engine:
            report = await enginehouse.evaluate(
                url=engine.url, tasks=[str(task)], judge=judge_at(grader.url), max_failed=1.0
            )
        assert report.tasks[0].outcomes["unscored"] == 1
        again = await resume_evaluation(report.run, Context(), retry_failed=True)
        assert again.tasks[0].outcomes["unscored"] == 1
        rescoring = await rescore_evaluation(report.run, Context())
        assert rescoring.report.tasks[0].outcomes["correct"] == 1


def test_the_stored_configuration_has_no_secret_of_the_judge():
    """Neither its key nor a variable that may be one."""
    values = {
        "model": "m",
        "tasks": ["gsm8k"],
        "judge": {
            "model": "j",
            "server": {"api_key": "s3cret", "env_vars": {"MINE": "s3cret", "VLLM_LOGGING": "1"}},
        },
    }
    text = resolved_yaml(parse(EvaluationConfig, values, origin="test"))
    assert "s3cret" not in text
    stored = yaml.safe_load(text)
    assert stored["judge"]["server"]["env_vars"] == {"VLLM_LOGGING": "1"}
    assert parse(EvaluationConfig, stored, origin="again").settings.judge is not None
