"""`enginehouse launch` with a real Docker daemon, from the file to the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.command_line import SOURCE, Finished, House, journaled, scored, sums, until
from tests.support.docker_daemon import IMAGE, Daemon, DockerMissingError, docker_daemon

pytestmark = pytest.mark.docker
Call = Callable[..., Finished]
SECRET = "hf_notARealTokenButLongEnoughToBeOne"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon."""
    try:
        with docker_daemon() as daemon:
            yield daemon
    except DockerMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def file(
    house: House, fake_python: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Writes a launch file of twelve samples; containers see this machine's Python.

    The house's own commands have the daemon's address, and a secret.
    """
    variables = {name: f"lit:{value}" for name, value in house.env.items()}
    for name, value in {**daemon.environment, "MY_TOKEN": SECRET}.items():
        monkeypatch.setitem(house.env, name, value)
    items, canned = sums(right=9, wrong=3)
    task = house.task(items)
    name, _, answers = house.answers(canned).partition("=")

    def write(*, latency: str = "0") -> Path:
        folders = {sys.prefix, sys.base_prefix, SOURCE.parent, house.folder, fake_python.parents[1]}
        values = {
            "defaults": [{"execution": "docker"}, {"deployment": "vllm"}, "_self_"],
            "execution": {
                "output_dir": "jobs",
                "image": IMAGE,
                "command": [sys.executable, "-m", "enginehouse"],
                "mounts": {"/usr": "/usr:ro", **{str(one): str(one) for one in folders}},
                "extra_docker_args": "--network none",
                "gpus": 0,
                "kill_grace": 20,
            },
            "env_vars": {
                **variables,
                "HF_TOKEN": "host:MY_TOKEN",
            },
            "deployment": {
                "checkpoint_path": str(house.model()),
                "tensor_parallel_size": 1,
                "env_vars": {name: answers, "VLLM_FAKE_TOKEN_LATENCY": latency},
            },
            "evaluation": {
                "tasks": [{"name": str(task)}],
                "nemo_evaluator_config": {"config": {"params": {"parallelism": 1}}},
            },
        }
        return house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False))

    return write


def _status(call: Call, job: str) -> Any:
    (record,) = call("launch", "status", job, "--json").report
    return record["status"]


def test_from_the_file_to_the_run(
    house: House, call: Call, daemon: Daemon, file: Callable[..., Path]
):
    """The engine is served and asked inside the container, and the run is one as any other."""
    done = call("launch", "run", "--config", str(file()), "--json")
    assert done.code == 0, done.err
    job = done.report["id"]
    followed = call("launch", "logs", job, "--follow")
    assert "75.0%" in followed.out, followed.out + followed.err
    assert _status(call, job) == {"state": "complete", "reason": None, "exit_code": 0}
    run = Path(done.report["job"]["folder"]) / "run"
    assert set(journaled(run).samples.values()) == {1}
    written = [path for path in house.folder.rglob("*") if path.is_file()]
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    assert daemon.docker("ps", "--all", "--quiet") == ""


def test_kill_and_resume(house: House, call: Call, daemon: Daemon, file: Callable[..., Path]):
    """A killed job leaves no container and no process; resumed, it asks only what is missing."""
    begun = call("launch", "run", "--config", str(file(latency="0.02")), "--json")
    assert begun.code == 0, begun.err
    job, run = begun.report["id"], Path(begun.report["job"]["folder"]) / "run"
    until(lambda: scored(run) >= 2, lambda: call("launch", "logs", job).out)
    killed = call("launch", "kill", job, "--json")
    assert killed.code == 0, killed.err
    assert killed.report["status"]["state"] == "cancelled"
    house.nothing_left()
    assert daemon.docker("ps", "--all", "--quiet") == ""
    assert 0 < scored(run) < 12
    assert call("launch", "resume", job).code == 0
    until(lambda: _status(call, job)["state"] == "complete", "it does not end")
    assert set(journaled(run).samples.values()) == {1}
    assert len(journaled(run).samples) == 12
