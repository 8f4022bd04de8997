"""Jobs on a real control plane; its node is ours, and runs pods as processes."""

from __future__ import annotations

import asyncio
import filecmp
import json
import secrets
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from tests.support.kubernetes_control_plane import (
    ControlPlane,
    is_installed,
    running_control_plane,
)
from tests.support.kubernetes_node import running_node

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Environment, JobSpec, JobState, Resources
from enginehouse.jobs.executors.kubernetes.executor import KubernetesExecutor
from enginehouse.jobs.executors.kubernetes.settings import KubernetesSettings
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, check_executor

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.skipif(not is_installed(), reason="run tools/build_kubernetes.sh first"),
]
Make = Callable[..., KubernetesExecutor]
# Indexed Jobs with a success policy need 1.31, and what can be built here is 1.20.
OLDER = [name for name in CASES if "companion" not in name]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane for all tests of this module."""
    with running_control_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest.fixture
async def make(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes executors of the cluster, which has a node for as long as the test lasts."""
    volume = str(tmp_path / "volume")

    def make(*, token: str | None = None, **changes: Any) -> KubernetesExecutor:
        kubeconfig = tmp_path / f"kubeconfig-{secrets.token_hex(4)}"
        kubeconfig.write_text(yaml.safe_dump(plane.kubeconfig(token=token)))
        values = {
            "output_dir": f"{volume}/jobs",
            "image": "registry.example/enginehouse:1",
            "kubeconfig": str(kubeconfig),
            "volumes": {volume: {"host_path": volume}},
        }
        return KubernetesExecutor(KubernetesSettings(**(values | changes)), Context())

    async with running_node(plane.address, plane.token, tmp_path / "node"):
        yield make


@pytest.mark.parametrize("case", OLDER)
async def test_conformance(case: str, make: Make, tmp_path: Path) -> None:
    """Every case of the suite of executors that this version of Kubernetes can run."""
    folder = PurePosixPath(tmp_path / "volume" / "jobs")
    assert await check_executor(make, folder=folder, only=[case]) == []


def job_in(tmp_path: Path, script: str, **changes: Any) -> JobSpec:
    """A job with a secret and a script."""
    number = secrets.token_hex(8)
    return JobSpec(
        id=number,
        name="a job",
        folder=PurePosixPath(tmp_path / "volume" / "jobs" / number),
        command=("/bin/sh", "script.sh"),
        files={"script.sh": script},
        environment=Environment(secrets=frozenset({"KEY"})),
        **changes,
    )


def objects_of(plane: ControlPlane, job: JobSpec) -> list[str]:
    """The kinds of object that carry the job's label."""
    kinds = []
    for path in ("apis/batch/v1", "api/v1"):
        for plural in ("jobs",) if "batch" in path else ("pods", "configmaps", "secrets"):
            request = urllib.request.Request(
                f"{plane.address}/{path}/namespaces/default/{plural}"
                f"?labelSelector=enginehouse/job%3D{job.id}",
                headers={"Authorization": f"Bearer {plane.token}"},
            )
            tls = ssl._create_unverified_context()
            with urllib.request.urlopen(request, context=tls) as response:
                kinds += [plural for _ in json.load(response)["items"]]
    return kinds


async def until(executor: KubernetesExecutor, handle: Any, *states: JobState) -> Any:
    """Wait until the job is in one of the states."""
    async with asyncio.timeout(60):
        while True:
            (status,) = await executor.statuses([handle])
            if status.state in states:
                return status
            await asyncio.sleep(0.1)


async def test_the_clusters_own_collector_deletes_what_a_job_owned(
    make: Make, plane: ControlPlane, tmp_path: Path
) -> None:
    """Owner references are such that the cluster's garbage collector follows them."""
    job = job_in(tmp_path, "sleep 600")
    async with make() as executor:
        handle = await executor.submit(job, secrets={"KEY": "value"})
        await until(executor, handle, JobState.RUNNING)
        assert sorted(objects_of(plane, job)) == ["configmaps", "jobs", "pods", "secrets"]
        await executor.cancel(handle)
        assert not {"jobs", "pods"} & set(objects_of(plane, job))
        async with asyncio.timeout(60):
            while objects_of(plane, job):  # noqa: ASYNC110 - the collector tells nobody
                await asyncio.sleep(0.1)


async def test_walltime(make: Make, tmp_path: Path) -> None:
    """The Job controller ends a job that takes too long."""
    job = job_in(tmp_path, "sleep 600", resources=Resources(walltime=1))
    async with make() as executor:
        handle = await executor.submit(job, secrets={"KEY": "value"})
        status = await until(executor, handle, JobState.INTERRUPTED, JobState.FAILED)
        assert status.state is JobState.INTERRUPTED


async def test_a_copy_through_exec(make: Make, tmp_path: Path) -> None:
    """The API server passes the command on to the node, and its output back."""
    job = job_in(tmp_path, "head -c 3000000 /dev/urandom > large.bin")
    async with make() as executor:
        handle = await executor.submit(job, secrets={"KEY": "value"})
        await until(executor, handle, JobState.COMPLETE)
        folder = await executor.fetch(handle, tmp_path / "copy")
    copy, original = folder / "large.bin", Path(job.folder, "large.bin")
    assert filecmp.cmp(copy, original, shallow=False)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"namespace": "unknown"}, "unknown_namespace"),
        ({"labels": {"not a label": "x"}}, "invalid"),
        ({"pod": {"restartPolicy": "Always"}}, "invalid"),
    ],
)
async def test_what_the_api_server_refuses(
    changes: dict[str, Any], kind: str, make: Make, tmp_path: Path
) -> None:
    """Its own words become errors of the right kind."""
    async with make(**changes) as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job_in(tmp_path, "true"), secrets={"KEY": "value"})
    assert caught.value.kind == kind


@pytest.mark.parametrize(("who", "kind"), [("stranger", "forbidden"), ("x", "unauthorized")])
async def test_who_may_not(
    who: str,
    kind: str,
    make: Make,
    plane: ControlPlane,
    tmp_path: Path,
) -> None:
    """Missing permission and wrong credentials are told apart."""
    async with make(token=getattr(plane, who, "wrong")) as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job_in(tmp_path, "true"), secrets={"KEY": "value"})
    assert caught.value.kind == kind
