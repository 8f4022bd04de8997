"""`enginehouse launch` on a real Ray cluster, from the file to the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.command_line import SMALL_VLLM, Finished, House, journaled, scored, sums, until
from tests.support.ray_cluster import LocalCluster

from enginehouse.core.errors import ConfigurationError, JobError

pytestmark = pytest.mark.ray
Call = Callable[..., Finished]
SECRET = "hf_notARealTokenButLongEnoughToBeOne"
_PATIENCE = 180.0  # seconds: a job starts several of Ray's processes, and then an engine


class Jobs:
    """Launch files of one house for the cluster, and the jobs that they become."""

    def __init__(self, house: House, call: Call, cluster: LocalCluster) -> None:
        self.house, self.call, self.cluster = house, call, cluster
        items, canned = sums(right=9, wrong=3)
        self.task = house.task(items)
        name, _, answers = house.answers(canned).partition("=")
        self.server = {name: answers}

    def file(self, *, latency: str = "0", **execution: Any) -> Path:
        """A launch file of twelve samples, one at a time; nodes know nothing of this house."""
        variables = {name: f"lit:{value}" for name, value in self.house.env.items()}
        values = {
            "defaults": [{"execution": "ray"}, {"deployment": "vllm"}, "_self_"],
            "execution": {
                "output_dir": str(self.house.work / "jobs"),
                "address": self.cluster.address,
                "python": str(self.cluster.python),
                "command": [sys.executable, "-m", "enginehouse"],
                "gpus_per_node": 1,
                "kill_grace": 20,
                **execution,
            },
            "env_vars": {**variables, "HF_TOKEN": "host:MY_TOKEN"},
            "deployment": {
                "checkpoint_path": str(self.house.model()),
                "tensor_parallel_size": 1,
                "env_vars": {**self.server, "VLLM_FAKE_TOKEN_LATENCY": latency},
            },
            "evaluation": {
                "tasks": [{"name": str(self.task)}],
                "nemo_evaluator_config": {"config": {"params": {"parallelism": 1}}},
            },
        }
        return self.house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False))

    def run(self, file: Path) -> Any:
        """The record of a job that was launched."""
        done = self.call("launch", "run", "--config", str(file), "--json", MY_TOKEN=SECRET)
        assert done.code == 0, done.err
        return done.report

    def reach(self, job: str, *states: str) -> Any:
        """The record of a job once it is in one of the states."""

        def look() -> Any:
            done = self.call("launch", "status", job, "--json")
            assert done.code == 0, done.err
            (record,) = done.report
            return record if record["status"]["state"] in states else None

        return until(look, lambda: self.call("launch", "logs", job).out, patience=_PATIENCE)


@pytest.fixture
def jobs(house: House, call: Call, ray_cluster: LocalCluster) -> Jobs:
    """Launch files for the cluster."""
    return Jobs(house, call, ray_cluster)


def test_from_the_file_to_the_run(house: House, call: Call, jobs: Jobs):
    """A job serves and evaluates on a node, and its run is one as any other."""
    begun = jobs.run(jobs.file())
    followed = call("launch", "logs", begun["id"], "--follow")
    assert followed.code == 0, followed.err
    assert "75.0%" in followed.out
    assert jobs.reach(begun["id"], "complete", "failed")["status"]["state"] == "complete"
    run = Path(begun["job"]["folder"]) / "run"
    shown = call("show", str(run))
    assert shown.code == 0, shown.err
    assert "75.0%" in shown.out
    assert set(journaled(run).samples.values()) == {1}
    written = [path for path in house.folder.rglob("*") if path.is_file()]
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in (jobs.cluster.ask("/api/jobs/") or b"").decode()


def test_time_limit(house: House, jobs: Jobs):
    """A job that takes too long is interrupted, whatever it was doing, and leaves nothing."""
    begun = jobs.run(jobs.file(latency="1", walltime=15))
    interrupted = jobs.reach(begun["id"], "interrupted", "complete", "failed")
    assert interrupted["status"]["reason"] == "TIMEOUT"
    assert interrupted["status"]["state"] == "interrupted"
    house.nothing_left()


def test_kill_and_resume(house: House, call: Call, jobs: Jobs):
    """A killed job leaves nothing; resumed, it asks only what is missing."""
    begun = jobs.run(jobs.file(latency="0.05"))
    run = Path(begun["job"]["folder"]) / "run"
    until(lambda: scored(run) >= 2, "no sample is scored", patience=_PATIENCE)
    again = call("launch", "resume", begun["id"], MY_TOKEN=SECRET)
    assert again.code == JobError.exit_code
    killed = call("launch", "kill", begun["id"], "--json")
    assert killed.code == 0, killed.err
    assert killed.report["status"]["state"] == "cancelled"
    house.nothing_left()
    assert 0 < scored(run) < 12
    assert call("launch", "resume", begun["id"]).code == ConfigurationError.exit_code
    resumed = call("launch", "resume", begun["id"], MY_TOKEN=SECRET)
    assert resumed.code == 0, resumed.err
    assert jobs.reach(begun["id"], "complete", "failed")["status"]["state"] == "complete"
    assert set(journaled(run).samples.values()) == {1}
    assert len(journaled(run).samples) == 12


def test_a_server_on_each_node(house: House, call: Call, jobs: Jobs):
    """Two servers on two nodes answer for one evaluation, and both end with it."""
    begun = jobs.run(jobs.file(num_nodes=2, num_instances=2))
    ended = jobs.reach(begun["id"], "complete", "failed", "interrupted")
    said = call("launch", "logs", begun["id"]).out
    assert ended["status"]["state"] == "complete", said
    assert "[server] " in said
    assert len(journaled(Path(begun["job"]["folder"]) / "run").samples) == 12
    house.nothing_left()


@pytest.mark.engine
def test_the_real_vllm(real_house: House, ray_cluster: LocalCluster):
    """Once with vLLM itself, on the CPUs that Ray reserves for it."""
    passed = ("ENGINEHOUSE_HOME", "HOME", "PYTHONPATH", *SMALL_VLLM)
    variables = {name: f"lit:{real_house.env[name]}" for name in passed}
    values = {
        "defaults": [{"execution": "ray"}, {"deployment": "vllm"}, "_self_"],
        "execution": {
            "output_dir": str(real_house.work / "jobs"),
            "address": ray_cluster.address,
            "python": str(ray_cluster.python),
            "command": [sys.executable, "-m", "enginehouse"],
            "gpus_per_node": 0,
            "cpus_per_node": len(os.sched_getaffinity(0)),
        },
        "env_vars": variables,
        "deployment": {
            "hf_model_handle": "smollm2",
            "tensor_parallel_size": 1,
            "variant": "cpu",
            "extra_args": "--max-model-len 2048",
        },
        "evaluation": {
            "tasks": [{"name": "gsm8k"}],
            "nemo_evaluator_config": {"config": {"params": {"limit_samples": 4}}},
        },
    }
    file = real_house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False))
    begun = real_house.run("launch", "run", "--config", str(file), "--json")
    assert begun.code == 0, begun.err
    job = begun.report["id"]
    followed = real_house.run("launch", "logs", job, "--follow")
    assert followed.code == 0, followed.err
    (record,) = real_house.run("launch", "status", job, "--json").report
    assert record["status"]["state"] == "complete", followed.out
    run = Path(record["job"]["folder"]) / "run"
    assert len(journaled(run).samples) == 4
    real_house.nothing_left()
