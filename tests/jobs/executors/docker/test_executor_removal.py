"""Containers that have ended and are not removed yet, as a scripted docker program shows them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Handle, JobSpec, JobState
from enginehouse.jobs.executors.docker.executor import DockerExecutor
from enginehouse.jobs.executors.docker.settings import DockerSettings
from enginehouse.runtime.context import Context

JOB = "0123456789abcdef"
NAME = f"enginehouse-{JOB}-ab12"
DOCKER = """#!/bin/sh
echo "$1" >> calls
case $1 in
  ps) cat containers ;;
  rm) : > containers ;;
  start) echo begun ;;
esac
"""


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the state of the job's container."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def write(state: str) -> None:
        container = json.dumps({"Names": NAME, "State": state})
        (tmp_path / "containers").write_text(f"{container}\n")

    return write


def executor(folder: Path) -> DockerExecutor:
    """An executor that asks the script."""
    return DockerExecutor(DockerSettings(output_dir=str(folder), image="i"), Context())


def job(folder: Path) -> JobSpec:
    """A job of that container."""
    return JobSpec(id=JOB, name="n", folder=PurePosixPath(folder / "job"), command=("true",))


async def test_a_job_is_submitted_again_while_docker_removes_its_container(tmp_path, show):
    """It has ended; the next one waits until that is gone."""
    show("removing")
    async with executor(tmp_path) as docker:
        await docker.submit(job(tmp_path), secrets={})
    calls = (tmp_path / "calls").read_text().split()
    assert calls.index("rm") < calls.index("create")


@pytest.mark.parametrize("state", ["created", "running", "paused"])
async def test_a_job_that_lives_is_not_submitted_again(tmp_path, show, state):
    """Nothing is made or removed."""
    show(state)
    async with executor(tmp_path) as docker:
        with pytest.raises(JobError) as caught:
            await docker.submit(job(tmp_path), secrets={})
    assert caught.value.kind == "running"
    assert (tmp_path / "calls").read_text().split() == ["ps"]


@pytest.mark.parametrize(
    ("state", "said", "then"),
    [
        ("exited", "exit 0", JobState.COMPLETE),
        ("running", "exit 0", JobState.COMPLETE),
        ("running", "lost", JobState.CANCELLED),
    ],
)
async def test_a_job_that_has_said_how_it_ends_is_not_cancelled(tmp_path, show, state, said, then):
    """Its container is removed all the same."""
    show(state)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "end.txt").write_text(f"{said}\n")
    handle = Handle(executor="docker", folder=str(tmp_path / "job"), reference={"container": NAME})
    async with executor(tmp_path) as docker:
        await docker.cancel(handle)
        (status,) = await docker.statuses([handle])
    assert status.state is then
    assert "rm" in (tmp_path / "calls").read_text().split()
