"""Runs whose tasks are lm-eval's, in which the engine or lm-eval is killed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from aiohttp import ClientSession
from tests.support.command_line import Finished, House
from tests.support.lm_eval_tasks import write_tasks
from tests.support.openai_endpoint import write_byte_tokenizer
from tests.support.processes import command_of

import enginehouse
from enginehouse.commands.evaluate import resume_evaluation
from enginehouse.core.errors import ConfigurationError, HarnessError
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.results.summary import Progress, Report
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.store.runs import list_runs
from enginehouse.testing.fake_engine import running_fake_engine

pytestmark = pytest.mark.engine

Call = Callable[..., Finished]

ITEMS = 60
REQUESTS = ITEMS + 4 * ITEMS  # a sum is asked once, and each of four capitals is scored
CONCURRENCY = 16
SUMS = {rf"^{n} \+ {n} =": str(2 * n if n % 3 else 7) for n in range(ITEMS)}


@pytest.fixture
def tasks(house: House, lm_eval_environment: EngineEnvironment) -> Path:
    """Local tasks, on a machine that has lm-eval and the list of its tasks."""
    ours, users = Layout.from_environment(), lm_eval_environment.executable.parents[3]
    assert lm_eval_environment.key is not None
    ours.environments.mkdir(parents=True, exist_ok=True)
    (ours.environments / lm_eval_environment.key).symlink_to(
        users / "environments" / lm_eval_environment.key
    )
    (users / "harness-tasks").mkdir(exist_ok=True)
    ours.harness_tasks.symlink_to(users / "harness-tasks")
    return write_tasks(house.work / "tasks", items=ITEMS)


def scores(report: Report) -> dict[str, Any]:
    """Every figure of every task, and the outcomes of its samples."""
    assert report.complete
    return {t.task: (t.harness and t.harness.figures, t.headline, t.outcomes) for t in report.tasks}


def killing(word: str, *moments: int) -> Callable[[Progress], None]:
    """Kills the processes whose command line has a word, when so many samples are done."""
    waiting = list(moments)

    def hear(progress: Progress) -> None:
        if waiting and progress.done >= waiting[0]:
            children = psutil.Process().children(recursive=True)
            processes = [child for child in children if word in " ".join(command_of(child))]
            for process in processes:
                process.kill()
            if processes:
                waiting.pop(0)

    return hear


async def test_the_engine_is_killed_twice(house: House, tasks: Path) -> None:
    """The run is complete, with the scores of an undisturbed one."""
    model = write_byte_tokenizer(house.model())
    settings: dict[str, Any] = {
        "tasks": ["lm-eval:mixed"],
        "include_path": tasks,
        "server": {
            "max_model_len": 512,
            "env_vars": dict([house.answers(SUMS).split("=", 1)])
            | {"VLLM_FAKE_TOKEN_LATENCY": "0.2"},
        },
        "concurrency": 16,
    }
    undisturbed = await enginehouse.evaluate(str(model), **settings)
    disturbed = await enginehouse.evaluate(
        str(model), progress=killing("--served-model-name", 10, 40), **settings
    )
    assert len(disturbed.incidents) == 2
    assert scores(disturbed) == scores(undisturbed)
    sums = next(task for task in disturbed.tasks if task.task == "lm-eval:sums")
    assert sums.headline is not None
    assert sums.headline.value == pytest.approx(2 / 3)
    house.nothing_left()


def test_its_tasks_are_searched(tasks: Path, call: Call) -> None:
    """By words, in any case, with the user's own among them."""
    search = call("tasks", "--harness", "lm-eval", "GSM8K", "openai/gsm8k")
    assert search.code == 0, search.err
    rows = [line.split() for line in search.out.splitlines()]
    assert ["lm-eval:gsm8k", "generate", "openai/gsm8k", "main"] in rows
    assert all("gsm8k" in name for name, *_ in rows)
    assert re.search(r"^\d+ of 1\d,\d{3} tasks$", search.err, re.MULTILINE)
    own = call(
        *("tasks", "--harness", "lm-eval", "mixed", "--include-path", str(tasks), "--json")
    ).report
    (mixed,) = (task for task in own if task["name"] == "lm-eval:mixed")
    assert (mixed["kind"], mixed["parts"]) == ("group", ["sums", "capitals"])
    none = call("tasks", "--harness", "lm-eval", "hellaswagg")
    assert none.code == ConfigurationError.exit_code
    assert "did you mean lm-eval:hellaswag?" in none.err


def test_a_job_is_launched(house: House, tasks: Path, call: Call) -> None:
    """The dry run says who asks the task; the job on this machine runs it as `eval` does."""
    name, _, answers = house.answers(SUMS).partition("=")
    model = write_byte_tokenizer(house.model())
    parameters = {
        "limit_samples": 6,
        "parallelism": 4,
        "extra": {"include_path": str(tasks.relative_to(house.work))},
    }
    values = {
        "defaults": [{"execution": "local"}, {"deployment": "vllm"}, "_self_"],
        "execution": {"output_dir": "jobs"},
        "deployment": {
            "checkpoint_path": str(model),
            "tensor_parallel_size": 1,
            "env_vars": {name: answers},
        },
        "evaluation": {
            "tasks": [{"name": "lm-eval:mixed"}, {"name": "lm-evaluation-harness.letters"}],
            "nemo_evaluator_config": {"config": {"params": parameters}},
        },
    }
    file = str(house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False)))
    dry = call("launch", "run", "--config", file, "--dry-run")
    assert dry.code == 0, dry.err
    assert "the task mixed of lm-eval, which asks and scores it itself" in dry.out
    assert "lm-eval:letters" in dry.out
    launched = call("launch", "run", "--config", file, "--json")
    assert launched.code == 0, launched.err
    followed = call("launch", "logs", launched.report["id"], "--follow")
    (record,) = call("launch", "status", launched.report["id"], "--json").report
    assert record["status"]["state"] == "complete", followed.out
    shown = call("show", str(Path(record["job"]["folder"]) / "run"), "--json")
    assert shown.code == 0, shown.err
    by_name = {task["task"]: task for task in shown.report["tasks"]}
    assert {*by_name} == {f"lm-eval:{n}" for n in ("mixed", "sums", "capitals", "letters")}
    assert by_name["lm-eval:sums"]["outcomes"]["correct"] == 4
    assert by_name["lm-eval:letters"]["items"] == 6
    house.nothing_left()


async def test_lm_eval_is_killed(house: House, tasks: Path) -> None:
    """Resumed, the engine, which is somebody else's, is asked for nothing twice that was recorded.

    Answers that were on their way to lm-eval when it was killed are lost.
    """
    tokenizer = write_byte_tokenizer(house.work / "tokenizer")
    task = {"name": "lm-eval:mixed", "arguments": {"tokenizer": str(tokenizer)}}
    async with running_fake_engine(answers=SUMS, token_latency=0.05) as engine:
        with pytest.raises(HarnessError, match="SIGKILL"):
            await enginehouse.evaluate(
                url=engine.url,
                tasks=[task],
                include_path=tasks,
                concurrency=CONCURRENCY,
                progress=killing("run_lm_eval", 30),
            )
        before = await _answered(engine.url)
        (run,) = list_runs(Layout.from_environment())
        report = await resume_evaluation(run.id, Context())
        answered = await _answered(engine.url)
    assert 30 <= before < REQUESTS
    assert report.complete
    mixed = next(task.harness for task in report.tasks if task.task == "lm-eval:mixed")
    assert mixed is not None
    assert mixed.requests + mixed.replayed == REQUESTS
    assert answered == before + mixed.requests
    assert 0 <= before - mixed.replayed <= CONCURRENCY


async def _answered(url: str) -> int:
    """How many requests an engine has answered to their end."""
    async with ClientSession() as client, client.get(f"{url}/metrics") as reply:
        counts = re.findall(
            r'^vllm:request_success_total\{.*finished_reason="(?:stop|length)".*\} ([\d.]+)',
            await reply.text(),
            re.MULTILINE,
        )
    return sum(int(float(count)) for count in counts)
