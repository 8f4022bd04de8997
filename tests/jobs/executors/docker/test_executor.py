"""Jobs in containers of a real Docker daemon, which runs on this machine."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest
from tests.support.docker_daemon import IMAGE, Daemon, lives_in_a_container

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Environment, Handle, JobState, Resources
from enginehouse.jobs.executors.docker.executor import DockerExecutor
from enginehouse.jobs.executors.docker.settings import DockerSettings
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, SECRET, Subject, check_executor

pytestmark = pytest.mark.docker


def executor(folder: Path, **settings: object) -> DockerExecutor:
    """An executor whose containers see this machine's programs."""
    given = {
        "output_dir": str(folder),
        "image": IMAGE,
        "mounts": {"/usr": "/usr:ro", str(folder): str(folder)},
        "kill_grace": 1,
        "extra_docker_args": "--network none",
        **settings,
    }
    return DockerExecutor(DockerSettings.model_validate(given), Context())


def subject(folder: Path, **settings: object) -> Subject:
    """An executor and its jobs, outside of the suite's own cases."""
    subject = Subject(
        make=lambda: executor(folder, **settings),
        folder=PurePosixPath(folder),
        patience=60,
        lives=lives_in_a_container,
    )
    subject.executor = subject.make()
    return subject


def _content(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.parametrize("name", CASES)
async def test_conformance(daemon: Daemon, tmp_path: Path, name: str):
    """What every executor must do; and no container is left."""
    failures = await check_executor(
        lambda: executor(tmp_path),
        folder=PurePosixPath(tmp_path),
        lives=lives_in_a_container,
        only={name},
    )
    assert failures == []
    assert daemon.docker("ps", "--all", "--quiet") == ""


async def test_secrets_are_not_in_the_container_s_description(daemon: Daemon, tmp_path: Path):
    """Docker keeps that on its disk, and shows it to all of its users."""
    docker = subject(tmp_path)
    async with docker.executor:
        script = f'test "$TOKEN" = {SECRET[:20]}"{SECRET[20:]}" && echo has it; sleep 600'
        job = docker.job(script, environment=Environment(secrets=frozenset({"TOKEN"})))
        handle = await docker.submit(job, values={"TOKEN": SECRET})
        await docker.until(handle, "has it")
        described = daemon.docker("inspect", handle.reference["container"])
        assert SECRET not in described
        assert job.id in described
        kept = (daemon.folder / "data/containers").rglob("*")
        assert [path for path in kept if path.is_file() and SECRET in path.read_text()] == []
        await docker.clear()


async def test_time_limit(daemon: Daemon, tmp_path: Path):
    """A job that takes too long is interrupted, and its container is gone."""
    docker = subject(tmp_path)
    async with docker.executor:
        handle = await docker.submit(docker.job("sleep 600", resources=Resources(walltime=1)))
        status = await docker.reach(handle, JobState.INTERRUPTED)
        assert status.reason == "TIMEOUT"
    assert daemon.docker("ps", "--all", "--quiet") == ""


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("kill",), "its container was killed"),
        (("stop", "--time", "5"), "its container was stopped"),
    ],
)
async def test_a_container_that_others_end(
    daemon: Daemon, tmp_path: Path, words: tuple[str, ...], reason: str
):
    """The job is interrupted, and continues when it is submitted again."""
    docker = subject(tmp_path)
    async with docker.executor:
        job = docker.job("test -e begun && echo again && exit 0; touch begun; sleep 600 & wait")
        first = await docker.submit(job)
        await docker.reach(first, JobState.RUNNING)
        daemon.docker(*words, first.reference["container"])
        status = await docker.reach(first, JobState.INTERRUPTED)
        assert status.reason == reason
        second = await docker.submit(job)
        await docker.reach(second, JobState.COMPLETE)
        assert "again" in await docker.log(second)


async def test_a_job_that_runs_is_not_submitted_again(daemon: Daemon, tmp_path: Path):
    """Two commands in one folder would write over one another."""
    docker = subject(tmp_path)
    async with docker.executor:
        job = docker.job("sleep 600")
        await docker.submit(job)
        with pytest.raises(JobError) as caught:
            await docker.submit(job)
        assert caught.value.kind == "running"
        await docker.clear()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"image": "not/there:1"}, "no_image"),
        ({}, "no_gpus"),
        ({"extra_docker_args": ["--no-such-flag"]}, "refused"),
    ],
)
async def test_jobs_that_docker_refuses(
    daemon: Daemon, tmp_path: Path, settings: dict[str, object], kind: str
):
    """Each has its own error, and nothing is left."""
    docker = subject(tmp_path, **settings)
    async with docker.executor:
        job = docker.job("exit 0", resources=Resources(gpus_per_node=2))
        with pytest.raises(JobError) as caught:
            await docker.submit(job)
    assert caught.value.kind == kind
    assert caught.value.fix
    assert _content(tmp_path) == []
    assert daemon.docker("ps", "--all", "--quiet") == ""


async def test_the_container_s_own_view(daemon: Daemon, tmp_path: Path):
    """Mounts, shared memory and the user are those of the settings."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "model").write_text("weights\n")
    mounts = {"/usr": "/usr:ro", str(data): "/models:ro"}
    docker = subject(tmp_path, mounts=mounts, shm_size="1g")
    async with docker.executor:
        script = "cat /models/model; touch /models/x || echo read only; df -k /dev/shm | tail -1"
        handle = await docker.submit(docker.job(script))
        await docker.reach(handle, JobState.COMPLETE)
        said = await docker.log(handle)
    assert "weights" in said
    assert "read only" in said
    assert "1048576" in said
    assert json.loads(daemon.docker("version", "--format", "{{json .Server}}"))["Os"] == "linux"


def test_what_became_of_a_folder(tmp_path: Path):
    """A handle whose folder is gone is of no use."""
    handle = Handle(executor="docker", folder=str(tmp_path / "gone"), reference={"container": "x"})
    from enginehouse.jobs.executors.docker.executor import _status

    assert _status(handle, {}).state is JobState.UNKNOWN
