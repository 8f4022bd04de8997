"""Jobs on a real Ray cluster, whose nodes are processes of this machine."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil
import pytest
from tests.support.ray_cluster import LocalCluster, stop_node

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Companion, Environment, JobSpec, JobState, Resources
from enginehouse.jobs.executors.ray import executor as ray_executor
from enginehouse.jobs.executors.ray.executor import RayExecutor
from enginehouse.jobs.executors.ray.settings import RaySettings
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, SECRET, Subject, check_executor, lives_here

pytestmark = pytest.mark.ray
_PATIENCE = 120.0  # seconds: each job starts several of Ray's processes


def executor(cluster: LocalCluster, **settings: object) -> RayExecutor:
    """An executor of jobs on the cluster."""
    given = {
        "output_dir": "/",
        "address": cluster.address,
        "python": str(cluster.python),
        "kill_grace": 2,
        **settings,
    }
    return RayExecutor(RaySettings.model_validate(given), Context())


def subject(cluster: LocalCluster, folder: Path, **settings: object) -> Subject:
    """An executor and its jobs, outside of the suite's own cases."""
    subject = Subject(
        make=lambda: executor(cluster, **settings),
        folder=PurePosixPath(folder),
        patience=_PATIENCE,
        lives=lives_here,
    )
    subject.executor = subject.make()
    return subject


def _processes() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            process.cmdline()
            yield process


def _files_with(text: str, folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if text.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", CASES)
async def test_conformance(ray_cluster: LocalCluster, tmp_path: Path, name: str):
    """What every executor must do."""
    failures = await check_executor(
        lambda: executor(ray_cluster),
        folder=PurePosixPath(tmp_path),
        patience=_PATIENCE,
        only={name},
    )
    assert failures == []


async def test_nodes_of_its_own(ray_cluster: LocalCluster, tmp_path: Path):
    """Companions run on other nodes than the command, with GPUs of their own."""
    script = "echo main $CUDA_VISIBLE_DEVICES; while ! test -e where; do sleep 0.1; done; cat where"
    told = 'echo companion "$CUDA_VISIBLE_DEVICES" of {head} > new; mv new where; sleep 600'
    companion = Companion(name="server", command=("/bin/sh", "-c", told))
    ray = subject(ray_cluster, tmp_path)
    async with ray.executor:
        job = ray.job(script, companions=(companion,), resources=Resources(gpus_per_node=2))
        handle = await ray.submit(job)
        await ray.reach(handle, JobState.COMPLETE)
        lines = (await ray.log(handle)).splitlines()
    assert "main 0,1" in lines
    (told,) = (line for line in lines if line.startswith("companion"))
    assert told.startswith("companion 0,1 of 127.0.0.")


async def test_a_job_that_waits(ray_cluster: LocalCluster, tmp_path: Path):
    """It is pending with what it waits for, and can be cancelled, unlike Ray's own."""
    ray = subject(ray_cluster, tmp_path)
    async with ray.executor:
        handle = await ray.submit(ray.job("exit 0", resources=Resources(gpus_per_node=16)))
        await ray.until(handle, "waiting")
        status = await ray.status(handle)
        assert status.state is JobState.PENDING
        assert "16 GPU" in (status.reason or "")
        await ray.executor.cancel(handle)
        assert (await ray.status(handle)).state is JobState.CANCELLED


async def test_time_limit(ray_cluster: LocalCluster, tmp_path: Path):
    """A job that takes too long is interrupted, which is no failure, and nothing of it is left."""
    ray = subject(ray_cluster, tmp_path)
    async with ray.executor:
        job = ray.job("echo pid $$; sleep 600", resources=Resources(walltime=2))
        handle = await ray.submit(job)
        said = await ray.until(handle, "pid")
        status = await ray.reach(handle, JobState.INTERRUPTED)
        assert status.reason == "TIMEOUT"
        words = said.split()
        await ray.gone([int(words[words.index("pid") + 1])])


async def test_a_node_that_dies(ray_cluster: LocalCluster, tmp_path: Path):
    """The job is interrupted, nothing of it is left, and it continues on another node."""
    script = (
        "test -e begun && echo again && exit 0; touch begun\n"
        "setsid sleep 600 &\necho pid $!\necho pid $$ end\nwait"
    )
    ray = subject(ray_cluster, tmp_path, resources_per_node={"rare": 1})
    node = ray_cluster.start_node(rare=1)
    try:
        async with ray.executor:
            job = ray.job(script)
            first = await ray.submit(job)
            said = await ray.until(first, "end")
            stop_node(node, number=signal.SIGKILL)
            status = await ray.reach(first, JobState.INTERRUPTED)
            assert status.reason == "a node was lost"
            pids = [int(line.split()[1]) for line in said.splitlines() if line.startswith("pid ")]
            await ray.gone(pids)
            node = ray_cluster.start_node(rare=1)
            second = await ray.submit(job)
            await ray.reach(second, JobState.COMPLETE)
            assert "again" in await ray.log(second)
    finally:
        stop_node(node)


async def test_secrets_are_seen_nowhere(ray_cluster: LocalCluster, tmp_path: Path):
    """Not in what the dashboard tells, in no file of the cluster, and in no command line."""
    script = f'test "$TOKEN" = {SECRET[:20]}"{SECRET[20:]}" && echo has it; sleep 600'
    secret = Environment(secrets=frozenset({"TOKEN"}))
    companion = Companion(name="server", command=("/bin/sh", "script.sh"), environment=secret)
    ray = subject(ray_cluster, tmp_path)
    async with ray.executor:
        job = ray.job(script, environment=secret, companions=(companion,))
        handle = await ray.submit(job, values={"TOKEN": SECRET})
        while (await ray.until(handle, "has it")).count("has it") < 2:
            pass
        tables = ("actors", "tasks", "objects", "jobs", "runtime_envs", "workers")
        paths = [f"/api/v0/{table}?detail=1&limit=10000" for table in tables]
        paths += ["/api/jobs/", f"/api/jobs/{handle.reference['submission']}", "/api/snapshot"]
        answers = {path: ray_cluster.ask(path) or b"" for path in paths}
        name = handle.reference["submission"].encode()
        assert sum(name in answer for answer in answers.values()) >= 3
        assert [path for path, answer in answers.items() if SECRET.encode() in answer] == []
        assert not any(SECRET in " ".join(process.cmdline()) for process in _processes())
        await ray.executor.cancel(handle)
    assert _files_with(SECRET, ray_cluster.folder) == _files_with(SECRET, tmp_path) == []


async def test_what_connects_to_ray_inside_a_job(ray_cluster: LocalCluster, tmp_path: Path):
    """A program of the job, such as vLLM, reaches the cluster; its workers get no secrets."""
    program = (
        "import ray\n"
        "ray.init(logging_level='error')\n"
        "inherited = ray.remote(lambda: dict(ray.get_runtime_context().runtime_env))\n"
        "print('inherited', ray.get(inherited.remote()))\n"
    )
    ray = subject(ray_cluster, tmp_path)
    async with ray.executor:
        script = f"exec {ray_cluster.python} program.py"
        handle = await ray.submit(ray.job(script, files={"program.py": program}))
        await ray.reach(handle, JobState.COMPLETE)
        assert "inherited {}" in await ray.log(handle)


async def test_fetch_from_nodes(
    ray_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A folder that cannot be read here is copied from the node that has it."""
    monkeypatch.setattr(ray_executor, "_is_here", lambda handle: False)
    ray = subject(ray_cluster, tmp_path)
    async with ray.executor:
        handle = await ray.submit(ray.job("mkdir run; head -c 300000 /dev/urandom > run/journal"))
        await ray.reach(handle, JobState.COMPLETE)
        copy = await ray.executor.fetch(handle, tmp_path / "copy")
        assert copy == tmp_path / "copy"
        journal = Path(handle.folder) / "run/journal"
        assert (copy / "run/journal").read_bytes() == journal.read_bytes()
        (Path(handle.folder) / ".ray-job").unlink()
        with pytest.raises(JobError) as caught:
            await ray.executor.fetch(handle, tmp_path / "again")
        assert caught.value.kind == "no_folder"


async def test_a_job_that_runs_is_not_submitted_again(ray_cluster: LocalCluster, tmp_path: Path):
    """Two commands in one folder would write over one another."""
    ray = subject(ray_cluster, tmp_path)
    async with ray.executor:
        job = ray.job("sleep 600")
        await ray.submit(job)
        with pytest.raises(JobError) as caught:
            await ray.submit(job)
        assert caught.value.kind == "running"
        await ray.clear()


async def test_without_ray_on_the_nodes(ray_cluster: LocalCluster, tmp_path: Path):
    """A Python that is not there, or has no Ray, fails the job; its secrets are removed."""
    ray = subject(ray_cluster, tmp_path, python="no-such-python")
    async with ray.executor:
        secret = Environment(secrets=frozenset({"TOKEN"}))
        job: JobSpec = ray.job("exit 0", environment=secret)
        handle = await ray.submit(job, values={"TOKEN": SECRET})
        status = await ray.reach(handle, JobState.FAILED)
        assert status.exit_code == 127
        assert "no-such-python" in await ray.log(handle)
    assert _files_with(SECRET, ray_cluster.folder) == []
    with tempfile.TemporaryDirectory() as into, pytest.raises(JobError):
        async with ray.make() as fresh:
            await fresh.fetch(handle, Path(into))
