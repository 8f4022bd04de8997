"""Slurm through ssh: a login node that is a real OpenSSH server on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil
import pytest
from tests.support.slurm_cluster import SlurmCluster
from tests.support.ssh_server import SSHMissingError, SSHServer, ssh_server

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Handle, JobSpec
from enginehouse.jobs.executors.slurm.executor import SlurmExecutor
from enginehouse.jobs.executors.slurm.settings import SlurmSettings
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import check_executor

pytestmark = pytest.mark.slurm
# Those in which the login node matters.
CASES = ("completes", "keeps_secrets", "kill_leaves_nothing", "resumes", "two_launchers_at_once")


@pytest.fixture
def login(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SSHServer]:
    """A login node of the cluster; this process does not know of Slurm."""
    try:
        with ssh_server(cluster.environment) as server:
            monkeypatch.delenv("SLURM_CONF")
            yield server
    except SSHMissingError as error:
        pytest.skip(str(error))


def executor(folder: Path, hostname: str, options: dict[str, str | int]) -> SlurmExecutor:
    """An executor that reaches a login node by these options of ssh."""
    settings = {"output_dir": str(folder), "hostname": hostname, "ssh_options": options}
    return SlurmExecutor(SlurmSettings.model_validate(settings), Context())


def job(folder: Path) -> JobSpec:
    """A job that writes a file."""
    return JobSpec(
        id="0123456789abcdef",
        name="test",
        folder=PurePosixPath(folder / "job"),
        command=("/bin/sh", "-c", "mkdir run; echo written > run/file"),
    )


async def failure(slurm: SlurmExecutor) -> JobError:
    """What it says to a question about a job."""
    handle = Handle(executor="slurm", folder="/jobs/x", reference={"job": "1"})
    with pytest.raises(JobError) as caught:
        async with slurm:
            await slurm.statuses([handle])
    return caught.value


def clients(server: SSHServer) -> list[psutil.Process]:
    """The processes of ssh that this server's key opens."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "ssh" and str(server.folder) in " ".join(process.cmdline()):
                processes.append(process)
    return processes


@pytest.mark.parametrize("name", CASES)
async def test_conformance(login: SSHServer, tmp_path: Path, name: str):
    """What every executor must do, through ssh; no connection is left."""
    failures = await check_executor(
        lambda: executor(tmp_path, "127.0.0.1", login.options),
        folder=PurePosixPath(tmp_path),
        only={name},
        patience=120,
    )
    assert failures == []
    assert clients(login) == []


async def test_what_a_job_wrote_is_copied(login: SSHServer, tmp_path: Path):
    """The folder of a login node is not this machine's."""
    async with executor(tmp_path, "127.0.0.1", login.options) as slurm:
        handle = await slurm.submit(job(tmp_path), secrets={})
        async for _ in slurm.logs(handle, follow=True):
            pass
        folder = await slurm.fetch(handle, tmp_path / "copy")
    assert folder == tmp_path / "copy"
    assert (folder / "run/file").read_text() == "written\n"


async def test_no_server_listens(tmp_path: Path):
    """It is said at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        error = await failure(executor(tmp_path, "127.0.0.1", {"Port": probe.getsockname()[1]}))
    assert error.kind == "unreachable"


async def test_a_host_that_does_not_exist(tmp_path: Path):
    """It is said at once."""
    error = await failure(executor(tmp_path, "no-such-host.invalid", {}))
    assert error.kind == "unreachable"


async def test_a_key_that_opens_nothing(login: SSHServer, tmp_path: Path):
    """No password is asked for."""
    options = {**login.options, "IdentityFile": str(login.folder / "host_key")}
    error = await failure(executor(tmp_path, "127.0.0.1", options))
    assert error.kind == "ssh_permission"


async def test_a_host_whose_key_is_unknown(login: SSHServer, tmp_path: Path):
    """It is not trusted by itself."""
    options = {**login.options, "UserKnownHostsFile": "/dev/null"}
    error = await failure(executor(tmp_path, "127.0.0.1", options))
    assert error.kind == "ssh_host_key"


async def test_an_option_that_ssh_does_not_have(tmp_path: Path):
    """It is the user's mistake, not the network's."""
    error = await failure(executor(tmp_path, "127.0.0.1", {"Prot": 22}))
    assert error.kind == "ssh_option"
