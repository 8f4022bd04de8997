"""`enginehouse watch --launch`: each checkpoint is evaluated by a job, with the fake engine."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.test_launch import Launches
from tests.support.command_line import Finished, House, until
from tests.support.tiny_checkpoints import write_checkpoint


class Watched:
    """A folder of checkpoints, and the launch file of their jobs."""

    def __init__(self, house: House, call: Any) -> None:
        self.house = house
        self.call = call
        self.launches = Launches(house, call)
        self.out = house.work / "out"
        self.out.mkdir()
        for step in (10, 20):
            write_checkpoint(self.out / f"step_{step}", seed=step)
        self.file = self.launches.file()

    def words(self, *more: str) -> tuple[str, ...]:
        """The command line."""
        watch = ("watch", "out", "--launch", str(self.file), "--interval", "0.2", "--once")
        return (*watch, "--jobs", "2", *more)

    def watch(self, *more: str) -> Finished:
        """Evaluate what is there."""
        return self.call(*self.words(*more))

    def jobs(self) -> list[Any]:
        """Every job, the latest first."""
        return self.call("launch", "ls", "runs", "--json").report

    def edit(self, **sections: Any) -> None:
        """Change sections of the launch file."""
        values = yaml.safe_load(self.file.read_text())
        for name, section in sections.items():
            values[name] = {**values[name], **section}
        self.file.write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.fixture
def watched(house: House, call: Any) -> Watched:
    """Two checkpoints, and a launch file with a model of its own."""
    return Watched(house, call)


@pytest.mark.slow
def test_a_job_for_each_checkpoint(watched: Watched, call: Any):
    """The file's own model is the base; every point is compared with it, and asked once."""
    done = watched.watch("--json")
    assert done.code == 0, done.err
    curve = done.report
    assert [point["name"] for point in curve["points"]] == ["step_10", "step_20"]
    for point in (curve["base"], *curve["points"]):
        assert point["tasks"][0]["score"]["value"] == 0.75
    assert curve["points"][0]["tasks"][0]["from_base"]["result"]["pairs"] == 12
    jobs = watched.jobs()
    assert {job["status"]["state"] for job in jobs} == {"complete"}
    assert len(jobs) == 3
    folders = {str(Path(job["job"]["folder"]) / "run") for job in jobs}
    assert {point["run"] for point in (curve["base"], *curve["points"])} == folders
    models = {json.dumps(job["model"]) for job in jobs}
    assert json.dumps(str(watched.out / "step_20")) in models
    again = watched.watch("--json")
    assert again.report == curve
    assert len(watched.jobs()) == 3


@pytest.mark.slow
def test_without_a_model_of_its_own(watched: Watched):
    """A file that leaves it open has no base; overrides reach every job."""
    watched.edit(deployment={"checkpoint_path": "???"})
    limit = "evaluation.nemo_evaluator_config.config.params.limit_samples=5"
    done = watched.watch("--json", "-o", limit, "--include", "step_2*")
    assert done.code == 0, done.err
    assert done.report["base"] is None
    (point,) = done.report["points"]
    assert point["name"] == "step_20"
    assert done.report["tasks"][0]["items"] == 5


@pytest.mark.slow
def test_ended_while_jobs_run(house: House, watched: Watched):
    """Ctrl-C and kill -9 leave the jobs alone; the same command finds them, and makes no others."""
    watched.file = watched.launches.slow()
    for number in (signal.SIGINT, signal.SIGKILL):
        running = house.start(*watched.words())
        running.until("is submitted") if number is signal.SIGINT else running.until("curve: ")
        until(lambda: len(watched.jobs()) >= 2, running.err.read_text)
        running.interrupt(number)
        running.end()
    begun = {job["id"] for job in watched.jobs() if job["submissions"]}
    done = watched.watch("--json")
    assert done.code == 0, done.err
    jobs = [job for job in watched.jobs() if job["submissions"]]  # a kill may precede that
    assert begun <= {job["id"] for job in jobs}
    assert len(jobs) == 3
    assert {job["status"]["state"] for job in jobs} == {"complete"}


@pytest.mark.slow
def test_a_job_that_fails_is_a_point(house: House, watched: Watched, call: Any):
    """With the reason; --retry-failed continues the same job."""
    watched.file = watched.launches.slow()
    running = house.start(*watched.words("--jobs", "1"))
    until(watched.jobs, running.err.read_text)
    (job,) = watched.jobs()
    watched.launches.working(job)
    assert call("launch", "kill", job["id"]).code == 0
    done = running.end()
    assert done.code == 0, done.err
    assert "is cancelled" in done.out
    again = watched.watch("--json", "--retry-failed")
    assert again.report["base"]["tasks"][0]["score"]["value"] == 0.75
    jobs = {one["id"]: one for one in watched.jobs()}
    assert len(jobs) == 3
    assert jobs[job["id"]]["submissions"] == 2


@pytest.mark.slow
def test_the_launchers_own_watch(house: House, watched: Watched):
    """A file of nel-watch is a watch for each folder; all of them end with the facade."""
    watched.edit(deployment={"checkpoint_path": "???"})
    (house.work / "second").mkdir()
    (watched.out / "step_20").rename(house.work / "second" / "step_20")
    values = {
        "monitoring_config": {"directories": ["out", "second"], "interval": 1},
        "evaluation_configs": [watched.file.name],
    }
    file = house.write("nel.yaml", yaml.safe_dump(values))
    facade = [sys.executable, "-m", "enginehouse.facades.nemo"]
    watching = house.start_program([*facade, "watch", "--config", str(file)])

    def complete() -> list[Any]:
        jobs = watched.jobs()
        return [job for job in jobs if job["status"]["state"] == "complete"]

    until(lambda: len(complete()) == 2, watching.err.read_text)
    assert sorted(Path(job["model"]).name for job in complete()) == ["step_10", "step_20"]
    watching.interrupt(signal.SIGTERM)
    assert watching.end().code == 128 + signal.SIGTERM
    house.nothing_left()


def test_what_is_refused(watched: Watched):
    """Before any job is submitted."""
    for words in (
        ("--task", "gsm8k"),
        ("--temperature", "1"),
        ("-o", "deployment.nosuch=1"),
        ("-o", "deployment=none", "-o", "++target.api_endpoint.url=http://127.0.0.1:9"),
        ("-o", "deployment={type: generic, command: serve, served_model_name: m}"),
        ("--include", ""),
    ):
        done = watched.watch(*words)
        assert (done.code, done.out) == (2, ""), words
    assert watched.call("watch", "out", "base", "--task", "sums", "--jobs", "2").code == 2
    assert watched.call("watch", "out", "--launch", "nosuch.yaml").code == 2
    assert watched.jobs() == []
