"""The launcher's notebook API, with jobs on this machine and a fake engine."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tests.support.command_line import House, sums, until
from tests.support.launch_files import SEED_EXAMPLE

from enginehouse.core.errors import ConfigurationError
from enginehouse.facades.nemo import (
    RunConfig,
    get_status,
    get_tasks_list,
    kill_job_or_invocation,
    resume_eval,
    run_eval,
)


@pytest.fixture
def overrides(house: House, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A deployment and a task of four samples, as a notebook's `dict_overrides`."""
    for name, value in house.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(house.work)
    items, canned = sums(right=3, wrong=1)
    name, _, answers = house.answers(canned).partition("=")
    return {
        "execution": {"output_dir": "results"},
        "deployment": {
            "checkpoint_path": str(house.model()),
            "tensor_parallel_size": 1,
            "env_vars": {name: answers},
        },
        "target": {"api_endpoint": {"url": None}},
        "evaluation": {"tasks": [{"name": str(house.task(items))}]},
    }


@pytest.mark.slow
def test_a_notebook_runs_an_evaluation(house: House, overrides: dict[str, Any]):
    """From the configuration to a finished job, also where an event loop runs."""
    config = RunConfig.from_hydra(hydra_overrides=["deployment=vllm"], dict_overrides=overrides)

    async def in_a_notebook() -> str | None:
        return run_eval(cfg=config)

    job = asyncio.run(in_a_notebook())
    assert job is not None

    def ended() -> Any:
        (status,) = get_status(job_ids=[job[:8]])
        return status if status["status"] not in ("pending", "running") else None

    status = until(ended, lambda: "it does not end")
    assert status["status"] == "success", status
    assert status["invocation"] == job
    assert (Path(status["data"]["output_dir"]) / "run" / "journal.jsonl").exists()
    assert get_status([f"{job}.0"])[0]["status"] == "success"
    assert kill_job_or_invocation(job)[0]["status"] == "success"
    assert resume_eval(job) == job
    assert until(ended, lambda: "it does not end again")["status"] == "success"
    until(lambda: not house.processes(), "its process does not end")


def test_a_dry_run_launches_nothing(house: House, overrides: dict[str, Any], capsys: Any):
    """It shows what would run, as the command line's dry run does."""
    config = RunConfig.from_hydra(hydra_overrides=["deployment=vllm"], dict_overrides=overrides)

    assert run_eval(config, dry_run=True) is None
    shown = capsys.readouterr().out
    assert str(house.model()) in shown
    assert "our own task sums: " in shown
    assert "GPUs: 1 needed, 1 asked for" in shown
    assert "memory (an estimate): " in shown
    assert not (house.work / "results").exists()
    assert not house.home.exists()


def test_a_file_is_found_by_its_name(tmp_path: Path):
    """Or by its path; the configuration can be changed before it runs."""
    (tmp_path / "mine.yaml").write_text(SEED_EXAMPLE)
    named = RunConfig.from_hydra(
        config_dir=str(tmp_path), config_name="mine", hydra_overrides=["deployment.port=1"]
    )
    by_path = RunConfig.from_hydra(config=str(tmp_path / "mine.yaml"))
    by_path.deployment.port = 1
    by_path.deployment.version = "0.32.0"

    assert named.deployment.port == by_path.deployment.port == 1
    assert "tensor_parallel_size: 8" in OmegaConf.to_yaml(named)


def test_tasks_are_overridden_by_name(tmp_path: Path):
    """As on the command line."""
    (tmp_path / "mine.yaml").write_text(SEED_EXAMPLE)
    config = RunConfig.from_hydra(
        str(tmp_path / "mine.yaml"), hydra_overrides=["evaluation.tasks.ifeval.endpoint_type=chat"]
    )

    assert config.evaluation.tasks[1].endpoint_type == "chat"


def test_what_is_wrong_is_refused_before_anything_runs(overrides: dict[str, Any]):
    """With the key."""
    wrong = overrides | {"evaluation": {"tsks": []}}
    with pytest.raises(ConfigurationError, match="tsks"):
        run_eval(RunConfig.from_hydra(None, ["deployment=vllm"], wrong))


def test_an_unknown_job_has_a_status(house: House, overrides: dict[str, Any]):
    """As the launcher says it."""
    assert get_status(["0123"])[0]["status"] == "not_found"


def test_tasks_are_listed_by_the_launchers_names():
    """Seven columns each."""
    tasks = get_tasks_list()

    assert ("ifeval", "lm-evaluation-harness") in {(task[0], task[2]) for task in tasks}
    assert ("gsm8k", "enginehouse") in {(task[0], task[2]) for task in tasks}
    assert {len(task) for task in tasks} == {7}
