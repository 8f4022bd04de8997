"""Jobs on a faked cluster, through the real client."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from tests.support.leased_ports import free_port

from enginehouse.core.errors import ConfigurationError, JobError
from enginehouse.jobs.base import (
    Companion,
    Environment,
    Handle,
    JobSpec,
    JobState,
    JobStatus,
    Resources,
)
from enginehouse.jobs.executors.kubernetes.executor import KubernetesExecutor
from enginehouse.jobs.executors.kubernetes.settings import KubernetesSettings
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.plan import plan_launch
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, check_executor
from enginehouse.testing.fake_kubernetes import FakeKubernetes, running_fake_kubernetes

Make = Callable[..., KubernetesExecutor]
# When pod 0 has ended, the cluster deletes the companions' pods, and with them their output.
KEPT = [name for name in CASES if name != "the_log_has_what_companions_print"]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[FakeKubernetes]:
    """A faked cluster."""
    async with running_fake_kubernetes(tmp_path / "node") as cluster:
        yield cluster


@pytest.fixture
def make(cluster: FakeKubernetes, tmp_path: Path) -> Make:
    """Makes executors of the cluster, whose volume is a folder of this machine."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(cluster.kubeconfig()))

    def make(**changes: Any) -> KubernetesExecutor:
        volume = str(tmp_path / "volume")
        values: dict[str, Any] = {
            "output_dir": f"{volume}/jobs",
            "image": "registry.example/enginehouse:1",
            "kubeconfig": str(kubeconfig),
            "volumes": {volume: {"host_path": volume}},
        }
        return KubernetesExecutor(KubernetesSettings(**(values | changes)), Context())

    return make


@pytest.mark.slow
@pytest.mark.parametrize("case", KEPT)
async def test_conformance(case: str, make: Make, tmp_path: Path) -> None:
    """Every case of the suite of executors that is about what Kubernetes keeps."""
    folder = PurePosixPath(tmp_path / "volume" / "jobs")
    assert await check_executor(make, folder=folder, only=[case]) == []


def job_in(tmp_path: Path, script: str, **changes: Any) -> JobSpec:
    """A job with a script of its own."""
    number = f"{secrets.randbits(64):016x}"
    return JobSpec(
        id=number,
        name="a job",
        folder=PurePosixPath(tmp_path / "volume" / "jobs" / number),
        command=("/bin/sh", "script.sh"),
        files={"script.sh": script},
        **changes,
    )


async def until(executor: KubernetesExecutor, handle: Handle, *states: JobState) -> JobStatus:
    """Wait until the job is in one of the states."""
    async with asyncio.timeout(60):
        while True:
            (status,) = await executor.statuses([handle])
            if status.state in states:
                return status
            await asyncio.sleep(0.02)


async def eventually(is_true: Callable[[], object]) -> None:
    """Wait until `is_true` says so."""
    async with asyncio.timeout(60):
        while not is_true():  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.02)


def manifests(executor: KubernetesExecutor, job: JobSpec) -> dict[str, Any]:
    """What the executor would create, by kind."""
    loaded = [yaml.safe_load(one.text) for one in executor.render(job) if one.name != "job.sh"]
    return {one["kind"]: one for one in loaded}


async def test_manifests_follow_the_published_schema(make: Make, tmp_path: Path) -> None:
    """Strictly: a field that the schema does not know is an error."""
    executor = make(
        secret_variables={"HF_TOKEN": "hub/token"},
        pod={"nodeSelector": {"gpu": "h200"}, "serviceAccountName": "runner"},
        labels={"kueue.x-k8s.io/queue-name": "evaluations"},
    )
    job = job_in(
        tmp_path,
        "true",
        environment=Environment(secrets=frozenset({"KEY"})),
        resources=Resources(gpus_per_node=8, cpus_per_node=16, memory_gb=1.5, walltime=3600),
        companions=(Companion(name="worker", command=("ray", "start"), nodes=2),),
    )
    objects = manifests(executor, job)
    assert set(objects) == {"Job", "ConfigMap", "Secret", "Service"}
    for manifest in objects.values():
        kubernetes_validate.validate(manifest, "1.33", strict=True)
        kubernetes_validate.validate(manifest, "1.37", strict=True)
    kubernetes_validate.validate(executor._manifests.reader(handle_of(job)), "1.37", strict=True)


def handle_of(job: JobSpec) -> Handle:
    """A handle as `submit` gives."""
    name = f"enginehouse-{job.id}"
    reference = {"namespace": "default", "name": name, "uid": "1", "job": job.id}
    reference |= {"image": "x", "server": "http://127.0.0.1:1"}
    return Handle(executor="kubernetes", folder=str(job.folder), reference=reference)


async def test_settings_act(make: Make, tmp_path: Path) -> None:
    """The settings are the manifests' values."""
    executor = make(gpu_resource="amd.com/gpu", pod={"priorityClassName": "low"})
    asked = KubernetesSettings(
        output_dir="/data", volumes={"/data": {"claim": "data"}}, walltime=60, memory_gb=1.5
    )
    job = job_in(tmp_path, "true", resources=asked.resources(gpus=2))
    spec = manifests(executor, job)["Job"]["spec"]
    pod = spec["template"]["spec"]
    assert spec["activeDeadlineSeconds"] == 60
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits == {"amd.com/gpu": "2", "memory": "1536Mi"}
    assert pod["priorityClassName"] == "low"


def test_gpus_must_suffice() -> None:
    """More GPUs than the servers need may be asked for, but not fewer."""
    volumes = {"/data": {"claim": "data"}}
    settings = KubernetesSettings(output_dir="/data", volumes=volumes, gpus=4)
    assert settings.resources(gpus=2).gpus_per_node == 4
    with pytest.raises(ConfigurationError):
        settings.resources(gpus=8)
    three = KubernetesSettings(output_dir="/data", volumes=volumes, num_nodes=3)
    assert three.resources(gpus=6).gpus_per_node == 2
    with pytest.raises(ConfigurationError):
        three.resources(gpus=8)


async def test_servers_in_several_pods(tmp_path: Path) -> None:
    """A server in each pod: the command in the first one, its companions in the others."""
    values = {
        "defaults": [{"execution": "kubernetes"}, {"deployment": "vllm"}, "_self_"],
        "execution": {
            "output_dir": "/data/jobs",
            "image": "registry.example/enginehouse:1",
            "volumes": {"/data": {"claim": "shared"}},
            "num_nodes": 3,
            "num_instances": 3,
        },
        "deployment": {"checkpoint_path": "/data/model", "tensor_parallel_size": 4},
        "evaluation": {"tasks": [{"name": "ifeval"}]},
    }
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(values))
    config = read_launch(tmp_path / "launch.yaml")
    assert isinstance(config.execution, KubernetesSettings)
    executor = KubernetesExecutor(config.execution, Context())
    job = plan_launch(config).job
    spec = manifests(executor, job)["Job"]["spec"]
    assert (spec["completions"], spec["parallelism"]) == (3, 3)
    limits = spec["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "4"}
    (script,) = [one.text for one in executor.render(job) if one.name == "job.sh"]
    assert "exec enginehouse eval" in script
    assert script.count("enginehouse serve") == 2


@pytest.mark.slow
async def test_walltime_interrupts(make: Make, tmp_path: Path) -> None:
    """A job that took too long can be resumed."""
    job = job_in(tmp_path, "sleep 600", resources=Resources(walltime=1))
    async with make() as executor:
        handle = await executor.submit(job, secrets={})
        status = await until(executor, handle, JobState.INTERRUPTED, JobState.FAILED)
    assert status == JobStatus(state=JobState.INTERRUPTED, reason="DeadlineExceeded")


async def test_a_preempted_pod_is_replaced_and_goes_on(
    make: Make, cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """The new pod finds the folder of the old one, and the log has both."""
    script = "test -e begun && echo again && exit 0; touch begun; echo first; exec sleep 600"
    async with make() as executor:
        job = job_in(tmp_path, script)
        handle = await executor.submit(job, secrets={})
        await eventually(Path(job.folder, "begun").exists)
        (pod,) = cluster.items["pods"]
        cluster.disrupt(pod)
        await until(executor, handle, JobState.COMPLETE)
        said = "".join([piece async for piece in executor.logs(handle, follow=True)])
    assert said.split() == ["first", "again"]


@pytest.mark.slow
async def test_an_unschedulable_job_says_why(
    make: Make, cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """The scheduler's words are the reason."""
    cluster.unschedulable = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    async with make() as executor:
        handle = await executor.submit(job_in(tmp_path, "true"), secrets={})
        pods = cluster.items["pods"].values()
        await eventually(lambda: any("conditions" in pod["status"] for pod in pods))
        (status,) = await executor.statuses([handle])
        assert status.reason is not None
        assert status.state is JobState.PENDING
        assert "Insufficient nvidia.com/gpu" in status.reason
        await executor.cancel(handle)
    assert not any(cluster.items[plural] for plural in ("jobs", "pods", "configmaps"))


@pytest.mark.slow
async def test_what_a_cancelled_job_owned_is_gone(
    make: Make, cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """Pods, files, secrets and the service go with the Job."""
    job = job_in(
        tmp_path,
        "sleep 600",
        environment=Environment(secrets=frozenset({"KEY"})),
        companions=(Companion(name="one", command=("sleep", "600")),),
    )
    async with make() as executor:
        handle = await executor.submit(job, secrets={"KEY": "value"})
        await until(executor, handle, JobState.RUNNING)
        await executor.cancel(handle)
    assert not any(cluster.items.values())


@pytest.mark.parametrize(
    ("plural", "status", "kind"),
    [
        ("jobs", 403, "forbidden"),
        ("jobs", 422, "invalid"),
        ("configmaps", 403, "forbidden"),
        ("secrets", 403, "forbidden"),
    ],
)
async def test_a_refusal_leaves_nothing_behind(
    plural: str, status: int, kind: str, make: Make, cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """Whatever is refused, what was created before it is deleted."""
    cluster.refusals[plural] = (status, "no")
    job = job_in(tmp_path, "true", environment=Environment(secrets=frozenset({"KEY"})))
    async with make() as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job, secrets={"KEY": "value"})
    assert caught.value.kind == kind
    await eventually(lambda: not any(cluster.items.values()))


async def test_quota_is_an_error_of_its_own(
    make: Make, cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """A quota is not a missing permission, although both are 403."""
    cluster.refusals["jobs"] = (403, "exceeded quota: gpus, requested: 8, used: 0, limited: 4")
    async with make() as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job_in(tmp_path, "true"), secrets={})
    assert caught.value.kind == "quota"


async def test_a_running_job_is_not_submitted_again(make: Make, tmp_path: Path) -> None:
    """Two pods would write to one folder."""
    job = job_in(tmp_path, "sleep 600")
    async with make() as executor:
        await executor.submit(job, secrets={})
        with pytest.raises(JobError) as caught:
            await executor.submit(job, secrets={})
    assert caught.value.kind == "running"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"kubeconfig": "/nowhere/config"}, "no_configuration"),
        ({"context": "unknown"}, "no_configuration"),
        ({"namespace": "unknown"}, "unknown_namespace"),
        ({"image": None}, "no_image"),
    ],
)
async def test_wrong_settings_are_errors_of_their_own(
    changes: dict[str, Any], kind: str, make: Make, tmp_path: Path
) -> None:
    """No context, no namespace, no image."""
    async with make(**changes) as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job_in(tmp_path, "true"), secrets={})
    assert caught.value.kind == kind


async def test_credentials_that_are_not_accepted(
    make: Make, cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """They are told apart from a missing permission."""
    cluster.token = "another"
    async with make() as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job_in(tmp_path, "true"), secrets={})
    assert caught.value.kind == "unauthorized"


async def test_a_server_that_does_not_answer(
    make: Make, cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """Nothing listens there."""
    config = cluster.kubeconfig()
    config["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{free_port()}"
    path = tmp_path / "dead"
    path.write_text(yaml.safe_dump(config))
    async with make(kubeconfig=str(path)) as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job_in(tmp_path, "true"), secrets={})
    assert caught.value.kind == "unreachable"


async def test_files_that_a_config_map_cannot_hold(make: Make, tmp_path: Path) -> None:
    """They are refused before any request."""
    with pytest.raises(JobError) as caught:
        make().render(job_in(tmp_path, "x" * 1_000_000))
    assert caught.value.kind == "too_large"


async def test_a_job_of_another_cluster_is_not_taken_for_a_deleted_one(
    make: Make, tmp_path: Path
) -> None:
    """The current context may have changed since."""
    handle = handle_of(job_in(tmp_path, "true"))
    async with make() as executor:
        (status,) = await executor.statuses([handle])
        with pytest.raises(JobError) as caught:
            await executor.cancel(handle)
    assert status.state is JobState.UNKNOWN
    assert caught.value.kind == "other_cluster"


async def test_statuses_cost_two_requests(
    make: Make, cluster: FakeKubernetes, tmp_path: Path
) -> None:
    """However many jobs there are."""
    async with make() as executor:
        handles = [await executor.submit(job_in(tmp_path, "true"), secrets={}) for _ in range(30)]
        cluster.requests.clear()
        await executor.statuses(handles)
    assert [method for method, _ in cluster.requests] == ["GET", "GET"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["echo kept > made.txt; exec sleep 600", "echo kept > made.txt"])
async def test_fetch_copies_the_folder(script: str, make: Make, tmp_path: Path) -> None:
    """From the job's own pod while it runs, afterwards from one that is made for it."""
    async with make() as executor:
        job = job_in(tmp_path, script)
        handle = await executor.submit(job, secrets={})
        await eventually(Path(job.folder, "made.txt").exists)
        if "sleep" not in script:
            await until(executor, handle, JobState.COMPLETE)
        folder = await executor.fetch(handle, tmp_path / "copy")
        assert folder == tmp_path / "copy"
        assert (folder / "made.txt").read_text() == "kept\n"
        assert (folder / "script.sh").read_text() == script


@pytest.mark.slow
async def test_fetch_of_a_folder_that_is_gone(make: Make, tmp_path: Path) -> None:
    """Tar's words are the reason."""
    async with make() as executor:
        job = job_in(tmp_path, "cd /; rm -r $OLDPWD")
        handle = await executor.submit(job, secrets={})
        await until(executor, handle, JobState.COMPLETE)
        with pytest.raises(JobError) as caught:
            await executor.fetch(handle, tmp_path / "copy")
    assert caught.value.kind == "exec_failed"


async def test_a_volume_that_is_mounted_here_is_not_copied(make: Make, tmp_path: Path) -> None:
    """Its path here is the result."""
    volume = str(tmp_path / "volume")
    here = {volume: {"host_path": volume, "mounted_here": "/mnt/results"}}
    job = job_in(tmp_path, "true")
    folder = await make(volumes=here).fetch(handle_of(job), tmp_path / "copy")
    assert folder == Path("/mnt/results/jobs", job.id)


@pytest.mark.parametrize(
    "changes",
    [
        {"output_dir": "relative"},
        {"output_dir": "/elsewhere"},
        {"volumes": {}},
        {"output_dir": "/data/x", "volumes": {"/data": {"claim": "a", "host_path": "/b"}}},
        {"output_dir": "/data/x", "volumes": {"/data": {"claim": "a", "read_only": True}}},
        {"secret_variables": {"A": "no-key"}},
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any]) -> None:
    """They are refused before anything is connected to."""
    good = {"output_dir": "/data/jobs", "volumes": {"/data": {"claim": "evaluations"}}}
    KubernetesSettings(**good)
    with pytest.raises(ValidationError):
        KubernetesSettings(**(good | changes))
