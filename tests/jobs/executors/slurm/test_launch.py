"""`enginehouse launch` on a real Slurm cluster, from the file to the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.support.command_line import House, journaled, until
from tests.support.slurm_cluster import SlurmCluster
from tests.support.slurm_jobs import Job, write_fake_launch

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("_jobs_go_first")]


@pytest.fixture
def slurm_house(house: House, cluster: SlurmCluster) -> House:
    """A machine with the fake engine on which Slurm runs."""
    house.env |= cluster.environment
    return house


@pytest.fixture
def _jobs_go_first(slurm_house: House, cluster: SlurmCluster) -> Iterator[None]:
    """Slurm's jobs end before `house` looks for what is left running."""
    yield
    cluster.clear()


def test_from_the_file_to_the_run(slurm_house: House, call):
    """The job serves, evaluates and ends; its run is one as any other."""
    job = Job(call, write_fake_launch(slurm_house))
    assert job.reach("complete", "failed")["state"] == "complete"
    shown = call("show", str(job.folder / "run"))
    assert shown.code == 0, shown.err
    assert "75.0%" in shown.out
    assert set(journaled(job.folder / "run").samples.values()) == {1}
    assert "75.0%" in job.log()


def test_a_time_limit(slurm_house: House, cluster: SlurmCluster, call):
    """The evaluation ends cleanly before it, and the next attempt asks only what is left."""
    job = Job(
        call,
        write_fake_launch(
            slurm_house,
            hangs=True,
            walltime="00:01:00",
            stop_before=30,
            max_walltime="02:00:00",
        ),
    )
    job.reach_sample(3)
    cluster.run("scontrol", "update", "PartitionName=batch", "State=DOWN")  # nothing starts
    try:
        until(lambda: job.status()["state"] != "running", lambda: str(job.status()), patience=240)
        status = job.status()
    finally:
        cluster.run("scontrol", "update", "PartitionName=batch", "State=UP")
    assert status["state"] == "pending"
    assert "TIMEOUT" in status["reason"]
    assert job.reach("complete", "failed", "interrupted")["state"] == "complete"
    assert set(journaled(job.folder / "run").samples.values()) == {1}
    assert "75.0%" in job.log()


def test_a_requeue(slurm_house: House, cluster: SlurmCluster, call):
    """Slurm runs the same job again, and the run goes on."""
    job = Job(call, write_fake_launch(slurm_house, hangs=True))
    job.reach_sample(3)
    cluster.run("scontrol", "requeue", cluster.run("squeue", "--noheader", "--format=%A").strip())
    assert job.reach("complete", "failed", "interrupted")["state"] == "complete"
    assert set(journaled(job.folder / "run").samples.values()) == {1}


def test_kill_and_resume(slurm_house: House, cluster: SlurmCluster, call):
    """A killed job leaves nothing running; resumed by hand, it goes on."""
    job = Job(call, write_fake_launch(slurm_house, hangs=True, max_walltime="05:00:00"))
    job.reach_sample(3)
    job.run("kill", job.id)
    assert job.status()["state"] == "cancelled"
    assert cluster.run("squeue", "--noheader") == ""
    slurm_house.nothing_left()
    job.run("resume", job.id)
    assert job.reach("complete", "failed", "interrupted")["state"] == "complete"
    assert set(journaled(job.folder / "run").samples.values()) == {1}
    assert "75.0%" in call("show", str(job.folder / "run")).out


def test_an_engine_that_ends(slurm_house: House, call):
    """The job fails with the exit code of the evaluation, and its log has the diagnosis."""
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"
    job = Job(call, write_fake_launch(slurm_house, server={"VLLM_FAKE_START_ERROR": error}))
    assert job.reach("complete", "failed", "interrupted") | {"reason": None} == {
        "state": "failed",
        "reason": None,
        "exit_code": 5,
    }
    assert "CUDA out of memory" in job.log()


def test_an_instance_on_each_node(slurm_house: House, cluster: SlurmCluster, call):
    """Two servers answer, one of them a companion that announces itself; both end with the job."""
    job = Job(call, write_fake_launch(slurm_house, num_nodes=2, num_instances=2))
    assert job.reach("complete", "failed", "interrupted")["state"] == "complete", job.log()
    assert set(journaled(job.folder / "run").samples.values()) == {1}
    cluster.clear()
    slurm_house.nothing_left()


def test_a_server_by_its_command_on_each_node(slurm_house: House, cluster: SlurmCluster, call):
    """Two servers answer; the one that other machines reach has a key, and checks it."""
    program = f"{sys.executable} -m enginehouse.testing.fake_engine --model $SERVED_MODEL_NAME"
    deployment = {
        "command": f"VLLM_API_KEY=$API_KEY {program} --host $HOST --port $PORT",
        "served_model_name": "tiny",
        "port": None,
    }
    written = Path(write_fake_launch(slurm_house, num_nodes=2, num_instances=2))
    values = yaml.safe_load(written.read_text())
    values["defaults"][1] = {"deployment": "generic"}
    values["deployment"] = {"env_vars": values["deployment"]["env_vars"], **deployment}
    written.write_text(yaml.safe_dump(values, sort_keys=False))
    job = Job(call, str(written))
    assert job.reach("complete", "failed", "interrupted")["state"] == "complete", job.log()
    assert set(journaled(job.folder / "run").samples.values()) == {1}
    assert "75.0%" in call("show", str(job.folder / "run")).out
    cluster.clear()
    slurm_house.nothing_left()
