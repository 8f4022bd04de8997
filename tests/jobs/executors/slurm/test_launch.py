"""`enginehouse launch` on a real Slurm cluster, from the file to the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.command_line import House, answered, journaled, sums, until
from tests.support.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
_PATIENCE = 240.0  # Slurm looks at time limits every half a minute


@pytest.fixture
def slurm_house(house: House, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> House:
    """A machine with the fake engine on which Slurm runs."""
    house.env |= cluster.environment
    return house


@pytest.fixture
def _no_job_outlives_its_test(slurm_house: House, cluster: SlurmCluster) -> Iterator[None]:
    """Slurm's jobs go first, so that `house` finds nothing running."""
    yield
    cluster.clear()


def write_launch(house: House, *, fault: str | None = None, **execution: object) -> str:
    """A launch file of four samples of the user's own task; `fault` hits the third one once."""
    items, canned = sums(right=3, wrong=1)
    name, _, answers = house.answers(canned).partition("=")
    server = {name: answers, "VLLM_FAKE_STATE": str(house.folder / "faults.json")}
    if fault is not None:
        faults = [{"fault": fault, "match": "Sum number 2", "first": 1}]
        server["VLLM_FAKE_FAULTS"] = json.dumps(faults)
    passed = ("ENGINEHOUSE_HOME", "ENGINEHOUSE_VLLM_PYTHON", "PYTHONPATH", "HOME")
    values = {
        "defaults": [{"execution": "slurm/default"}, {"deployment": "vllm"}, "_self_"],
        "execution": {
            "output_dir": str(house.work / "jobs"),
            "gpus_per_node": 0,
            "partition": "batch",
            "max_walltime": None,
            **execution,
        },
        "deployment": {
            "checkpoint_path": str(house.model()),
            "served_model_name": "tiny",
            "env_vars": server,
        },
        "evaluation": {
            "tasks": [{"name": str(house.task(items))}],
            "env_vars": {name: f"lit:{house.env[name]}" for name in passed},
        },
    }
    return str(house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False)))


class Job:
    """A job, by the commands of its user."""

    def __init__(self, call: Any, launch_file: str) -> None:
        self._call = call
        self.id, self.folder = "", Path()
        report = self.run("run", "--config", launch_file, "--json").report
        self.id, self.folder = report["id"], Path(report["job"]["folder"])

    def run(self, *words: str) -> Any:
        """`enginehouse launch WORDS`, which must succeed."""
        done = self._call("launch", *words)
        assert done.code == 0, done.err
        return done

    def status(self) -> dict[str, Any]:
        """What `launch status` says."""
        status: dict[str, Any] = self.run("status", self.id[:6], "--json").report[0]["status"]
        return status

    def reach(self, *states: str) -> dict[str, Any]:
        """Wait for one of these states."""
        return until(
            lambda: status if (status := self.status())["state"] in states else None,
            lambda: f"{self.status()}\n{self.log()}",
            patience=_PATIENCE,
        )

    def log(self) -> str:
        """What `launch logs` prints."""
        return self.run("logs", self.id).out

    def reach_sample(self, number: int) -> None:
        """Wait until so many samples are answered; the next one hangs."""
        until(
            lambda: answered(self.folder / "run") >= number,
            lambda: f"{self.status()}\n{self.log()}",
            patience=_PATIENCE,
        )


@pytest.mark.usefixtures("_no_job_outlives_its_test")
def test_from_the_file_to_the_run(slurm_house: House, call):
    """The job serves, evaluates and ends; its run is one as any other."""
    job = Job(call, write_launch(slurm_house))
    assert job.reach("complete", "failed")["state"] == "complete"
    shown = call("show", str(job.folder / "run"))
    assert shown.code == 0, shown.err
    assert "75.0%" in shown.out
    assert set(journaled(job.folder / "run").samples.values()) == {1}
    assert "75.0%" in job.log()


@pytest.mark.usefixtures("_no_job_outlives_its_test")
def test_a_time_limit(slurm_house: House, cluster: SlurmCluster, call):
    """The evaluation ends cleanly before it, and the next attempt asks only what is left."""
    job = Job(
        call,
        write_launch(
            slurm_house,
            fault="hang",
            walltime="00:01:00",
            stop_before=30,
            max_walltime="02:00:00",
        ),
    )
    job.reach_sample(3)
    status = until(lambda: s if (s := job.status())["reason"] else None, "", patience=_PATIENCE)
    assert status["state"] == "pending"
    assert "TIMEOUT" in status["reason"]
    assert job.reach("complete", "failed", "interrupted")["state"] == "complete"
    assert set(journaled(job.folder / "run").samples.values()) == {1}
    assert "75.0%" in job.log()


@pytest.mark.usefixtures("_no_job_outlives_its_test")
def test_a_requeue(slurm_house: House, cluster: SlurmCluster, call):
    """Slurm runs the same job again, and the run goes on."""
    job = Job(call, write_launch(slurm_house, fault="hang"))
    job.reach_sample(3)
    cluster.run("scontrol", "requeue", cluster.run("squeue", "--noheader", "--format=%A").strip())
    assert job.reach("complete", "failed", "interrupted")["state"] == "complete"
    assert set(journaled(job.folder / "run").samples.values()) == {1}


@pytest.mark.usefixtures("_no_job_outlives_its_test")
def test_kill_and_resume(slurm_house: House, cluster: SlurmCluster, call):
    """A killed job leaves nothing running; resumed by hand, it goes on."""
    job = Job(call, write_launch(slurm_house, fault="hang", max_walltime="05:00:00"))
    job.reach_sample(3)
    job.run("kill", job.id)
    assert job.status()["state"] == "cancelled"
    assert cluster.run("squeue", "--noheader") == ""
    slurm_house.nothing_left()
    job.run("resume", job.id)
    assert job.reach("complete", "failed", "interrupted")["state"] == "complete"
    assert set(journaled(job.folder / "run").samples.values()) == {1}
    assert "75.0%" in call("show", str(job.folder / "run")).out


@pytest.mark.usefixtures("_no_job_outlives_its_test")
def test_an_engine_that_ends(slurm_house: House, call):
    """The job fails with the exit code of the evaluation, and its log has the diagnosis."""
    launch_file = Path(write_launch(slurm_house))
    values = yaml.safe_load(launch_file.read_text())
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"
    values["deployment"]["env_vars"]["VLLM_FAKE_START_ERROR"] = error
    launch_file.write_text(yaml.safe_dump(values))
    job = Job(call, str(launch_file))
    assert job.reach("complete", "failed", "interrupted") | {"reason": None} == {
        "state": "failed",
        "reason": None,
        "exit_code": 5,
    }
    assert "CUDA out of memory" in job.log()
