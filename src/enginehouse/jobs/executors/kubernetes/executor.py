"""Jobs on a Kubernetes cluster: one Job each, with what it needs as objects that it owns.

The job's folder is in a volume, so that it outlives the pods; a volume must be named for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Artifact, Handle, JobSpec, JobState, JobStatus
from enginehouse.jobs.executors.base import still_running
from enginehouse.jobs.executors.kubernetes.cluster import ApiError, Cluster, connect
from enginehouse.jobs.executors.kubernetes.folders import Reader, copy_folder, until_gone
from enginehouse.jobs.executors.kubernetes.manifests import (
    BATCH,
    JOB_LABEL,
    MANAGED,
    Manifests,
    as_yaml,
    name_of,
    owner_of,
    secret_names,
)
from enginehouse.jobs.executors.kubernetes.settings import KubernetesSettings, mount_of
from enginehouse.jobs.executors.kubernetes.states import (
    ended,
    has_output,
    job_status,
    phase,
    pod_index,
    pods_of,
)
from enginehouse.runtime.context import Context

_POLL = 0.5


class KubernetesExecutor:
    """Runs jobs on a cluster, as its user in the kubeconfig may."""

    name = "kubernetes"
    settings_class = KubernetesSettings

    def __init__(self, settings: KubernetesSettings, context: Context) -> None:
        self._settings = settings
        self._manifests = Manifests(settings)
        self._context = context
        self._connection: Cluster | None = None
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the connection; the jobs go on."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.__aexit__(None, None, None)

    def render(self, job: JobSpec) -> Sequence[Artifact]:
        """The manifests, as YAML; a Secret without its values."""
        objects = self._manifests.objects(job, owner={}, values={})
        if (secret := objects.get("secret")) is not None:
            names = sorted(secret_names(job))
            secret = {**secret, "data": dict.fromkeys(names, "...")}
            objects["secret"] = secret
        for manifest in objects.values():
            manifest["metadata"].pop("ownerReferences", None)
        script = objects["files"]["data"].pop("job.sh")
        artifacts = [
            Artifact(
                name=f"{manifest['kind']} {manifest['metadata']['name']}", text=as_yaml(manifest)
            )
            for manifest in (self._manifests.job(job), *objects.values())
        ]
        return [Artifact(name="job.sh", text=script), *artifacts]

    def check(self, job: JobSpec) -> None:
        """Raise JobError for a job without an image."""
        del job
        self._manifests.image()

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Create the Job, then what it owns; an ended Job of the same name is replaced.

        Blocks until the ended one is gone.
        """
        self.check(job)  # its errors come before any request
        manifest = self._manifests.job(job)
        cluster = await self._cluster()
        name = manifest["metadata"]["name"]
        try:
            await self._remove_ended(cluster, name)
            created = await cluster.create(BATCH, "jobs", manifest)
            uid = created["metadata"]["uid"]
            try:
                objects = self._manifests.objects(job, owner=owner_of(name, uid), values=secrets)
                for plural, key in (
                    ("configmaps", "files"),
                    ("secrets", "secret"),
                    ("services", "service"),
                ):
                    if key in objects:
                        await cluster.create("", plural, objects[key])
            except BaseException:
                await asyncio.shield(cluster.delete(BATCH, "jobs", name, uid=uid))
                raise
        except ApiError as error:
            raise _job_error(error, f"the job {job.id} was not submitted", cluster) from error
        return self._handle(job, cluster, uid)

    async def find(self, job: JobSpec) -> Handle | None:
        """By the Job's name."""
        cluster = await self._cluster()
        try:
            there = await cluster.read(BATCH, "jobs", name_of(job.id))
        except ApiError as error:
            raise _job_error(error, f"the job {job.id} could not be looked up", cluster) from error
        return self._handle(job, cluster, there["metadata"]["uid"]) if there else None

    def _handle(self, job: JobSpec, cluster: Cluster, uid: str) -> Handle:
        reference = {
            "server": cluster.address,
            "namespace": cluster.namespace,
            "name": name_of(job.id),
            "uid": uid,
            "job": job.id,
            "image": self._manifests.image(),
        }
        return Handle(executor=self.name, folder=str(job.folder), reference=reference)

    async def statuses(self, handles: Sequence[Handle]) -> Sequence[JobStatus]:
        """Two lists for each namespace, of the Jobs and of their pods, however many handles."""
        here = await self._cluster()
        own = [one for one in handles if one.reference["server"] == here.address]
        jobs: dict[str, dict[str, Any]] = {}
        pods: list[dict[str, Any]] = []
        for namespace in sorted({one.reference["namespace"] for one in own}):
            cluster = here.within(namespace)
            ids = {o.reference["job"] for o in own if o.reference["namespace"] == namespace}
            selector = ",".join(f"{key}={value}" for key, value in MANAGED.items())
            if len(ids) <= 20:
                selector = f"{JOB_LABEL} in ({','.join(sorted(ids))})"
            try:
                listed = await cluster.list(BATCH, "jobs", selector=selector)
                pods += await cluster.list("", "pods", selector=selector)
            except ApiError as error:
                raise _job_error(error, "the jobs cannot be listed", cluster) from error
            jobs |= {one["metadata"]["uid"]: one for one in listed}
        return [
            job_status(jobs.get(_uid(one)), pods_of(_uid(one), pods))
            if one in own
            else JobStatus(state=JobState.UNKNOWN, reason=f"it is on {one.reference['server']}")
            for one in handles
        ]

    async def logs(self, handle: Handle, *, follow: bool) -> AsyncIterator[str]:
        """The output of the command's pods, one after another, then that of companions' pods."""
        cluster = await self._cluster_of(handle)
        read: set[str] = set()
        try:
            while True:
                (status,) = await self.statuses([handle])  # before reading: nothing is lost
                pods = pods_of(_uid(handle), await self._list_pods(cluster, handle))
                for pod in [one for one in pods if pod_index(one) == 0 and has_output(one)]:
                    name = pod["metadata"]["name"]
                    if name not in read:
                        async for piece in cluster.log(name, follow=follow):
                            yield piece
                        read.add(name)
                if not follow or status.state.ended:
                    break
                await asyncio.sleep(_POLL)
            for pod in [one for one in pods if pod_index(one) > 0 and has_output(one)]:
                yield f"\n==> pod {pod_index(pod)} <==\n"
                async for piece in cluster.log(pod["metadata"]["name"], follow=False):
                    yield piece
        except ApiError as error:
            raise _job_error(error, "the job's output cannot be read", cluster) from error
        if not read and not follow and status.state.ended and not pods:
            raise JobError(
                "the job's output is no longer available",
                why="its pods were deleted",
                fix="the run's own log is in the job's folder: `enginehouse launch info`",
                kind="no_log",
            )

    async def fetch(self, handle: Handle, into: Path) -> Path:
        """The folder where the volume is mounted here; else a copy, read with tar in a pod.

        The pod is the job's own while that runs. Afterwards it is one that mounts the same volume
        and is deleted again.
        """
        folder = PurePosixPath(handle.folder)
        mount = mount_of(folder, self._settings.volumes)
        volume = self._settings.volumes[mount] if mount is not None else None
        if volume is not None and mount is not None and volume.mounted_here is not None:
            return Path(volume.mounted_here) / folder.relative_to(mount)
        cluster = await self._cluster_of(handle)
        try:
            pods = pods_of(_uid(handle), await self._list_pods(cluster, handle))
            running = [one for one in pods if pod_index(one) == 0 and phase(one) == "Running"]
            if running:
                await copy_folder(cluster, running[-1]["metadata"]["name"], folder, into)
            else:
                async with Reader(cluster, self._manifests.reader(handle)) as name:
                    await copy_folder(cluster, name, folder, into)
        except ApiError as error:
            raise _job_error(error, "the job's folder cannot be read", cluster) from error
        return into

    async def cancel(self, handle: Handle) -> None:
        """Delete the Job with all that it owns, and wait until no pod is left. Idempotent.

        A Job that has ended stays as it is.
        """
        cluster = await self._cluster_of(handle)
        name, uid = handle.reference["name"], _uid(handle)
        try:
            (status,) = await self.statuses([handle])
            if not status.state.ended and await cluster.delete(BATCH, "jobs", name, uid=uid):
                await until_gone(cluster, "jobs", name, uid, group=BATCH)
        except ApiError as error:
            raise _job_error(error, "the job was not cancelled", cluster) from error

    async def _cluster(self) -> Cluster:
        async with self._connecting:
            if self._connection is None:
                settings = self._settings
                self._connection = await connect(
                    kubeconfig=settings.kubeconfig,
                    context=settings.context,
                    namespace=settings.namespace,
                )
            return self._connection

    async def _cluster_of(self, handle: Handle) -> Cluster:
        """The cluster and the namespace of a job. Raises JobError if it is on another cluster."""
        cluster, server = await self._cluster(), handle.reference["server"]
        if server != cluster.address:
            raise JobError(
                f"the job is on the cluster at {server}",
                why=f"{cluster.source} points to {cluster.address}",
                fix="`kubectl config use-context` or execution.context chooses the cluster",
                kind="other_cluster",
            )
        return cluster.within(handle.reference["namespace"])

    async def _list_pods(self, cluster: Cluster, handle: Handle) -> list[dict[str, Any]]:
        selector = f"{JOB_LABEL}={handle.reference['job']}"
        return await cluster.list("", "pods", selector=selector)

    async def _remove_ended(self, cluster: Cluster, name: str) -> None:
        """Delete a Job of that name that has ended. Raises JobError for one that runs."""
        if (old := await cluster.read(BATCH, "jobs", name)) is None:
            return
        uid = old["metadata"]["uid"]
        if not ended(old) and "deletionTimestamp" not in old["metadata"]:
            raise still_running(
                f"the job {name} is still running in the namespace {cluster.namespace}"
            )
        await cluster.delete(BATCH, "jobs", name, uid=uid)
        await until_gone(cluster, "jobs", name, uid, group=BATCH)


def _job_error(error: ApiError, what: str, cluster: Cluster) -> JobError:
    """What the API server's refusal means for a job."""
    namespace = cluster.namespace
    kind, fix = "refused", "the API server's message explains what is wrong"
    if error.status == 401:
        kind = "unauthorized"
        fix = f"log in again: the credentials of {cluster.source} are not accepted"
    elif error.status == 403 and "quota" in error.message:
        kind, fix = "quota", f"`kubectl describe quota -n {namespace}` shows what is left"
    elif error.status == 403:
        kind = "forbidden"
        fix = f"`kubectl auth can-i --list -n {namespace}` shows what you may do"
    elif error.status == 404 and "namespaces" in error.message:
        kind = "unknown_namespace"
        fix = "`kubectl get namespaces` lists them; execution.namespace names one"
    elif error.status in (400, 422):
        kind = "invalid"
        fix = "`enginehouse launch run --dry-run` shows the manifests"
    return JobError(what, why=f"{cluster.address}: {error.message}", fix=fix, kind=kind)


def _uid(handle: Handle) -> str:
    return handle.reference["uid"]
