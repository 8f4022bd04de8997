"""Jobs on a Kubernetes cluster: one Job each, with what it needs as objects that it owns.

The Job is an Indexed Job if there are companions: pod 0 runs the command, the others a companion
each, and the Job is complete when pod 0 is. The job's folder is in a volume, so that it outlives
the pods; a volume must be named for it.
"""

from __future__ import annotations

import asyncio
import base64
import shlex
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from enginehouse.core.errors import ConfigurationError, JobError
from enginehouse.core.strict_model import StrictModel
from enginehouse.jobs.base import (
    Artifact,
    Companion,
    Environment,
    Handle,
    JobSpec,
    JobState,
    JobStatus,
    Resources,
)
from enginehouse.jobs.executors.base import ExecutionSettings
from enginehouse.jobs.kubernetes_cluster import ApiError, Cluster, connect
from enginehouse.jobs.kubernetes_states import (
    ended,
    has_output,
    is_final,
    job_status,
    phase,
    pod_index,
    pods_of,
    waiting,
)
from enginehouse.runtime.context import Context

_BATCH = "batch/v1"
_MANAGED = {"app.kubernetes.io/managed-by": "enginehouse"}
_JOB_LABEL = "enginehouse/job"
_FILES = "/enginehouse-job"  # where the script and the job's files are mounted
_GRACE = 60  # seconds between SIGTERM and SIGKILL: servers are stopped and the journal is closed
_LARGEST = 900_000  # bytes of a job's files; a ConfigMap holds 1 MiB
_POLL = 0.5
_COPY_LIFE = 3600  # seconds until a pod that only reads a volume ends by itself

Gigabytes = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class PodVolume(StrictModel):
    """A volume of a job's pods: a claim of the namespace, or a folder of the node."""

    claim: str | None = None
    """The name of a PersistentVolumeClaim."""
    host_path: str | None = None
    """A folder of the node that the pod runs on."""
    read_only: bool = False
    """Whether the job may only read it."""
    mounted_here: str | None = None
    """Where this machine has the same volume mounted; results are then not copied."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.claim is None) == (self.host_path is None):
            raise ValueError("give either claim or host_path")
        return self


class KubernetesSettings(ExecutionSettings):
    """Jobs on a Kubernetes cluster."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "mode": "one server answers for all tasks of a job",
    }

    type: Literal["kubernetes"] = "kubernetes"
    volumes: Annotated[Mapping[str, PodVolume], Field(min_length=1)]
    """The volumes by where they are mounted; `output_dir` must lie in one of them."""
    image: str | None = None
    """The image of all pods, with Enginehouse and the engine in it."""
    kubeconfig: str | None = None
    """The kubeconfig file; by default $KUBECONFIG or ~/.kube/config, or the pod's own account."""
    context: str | None = None
    """The kubeconfig's context; by default its current one."""
    namespace: str | None = None
    """The namespace; by default the context's."""
    num_nodes: Count = 1
    """The pods of a job, over all of its servers."""
    num_instances: Count = 1
    """The servers: as many as pods, or one over all of them; with one pod, all in that."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """The GPUs of each pod; by default, what the servers need."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    cpus: Count | None = None
    """The CPU cores of each pod."""
    memory_gb: Gigabytes | None = None
    """The memory of each pod, in GiB."""
    walltime: Count | None = None
    """The longest time for a whole job, in seconds, from its first pod on."""
    secret_variables: Mapping[str, str] = Field(default_factory=dict)
    """Variables from Secrets that are in the namespace already: `HF_TOKEN: NAME/KEY`."""
    pod: Mapping[str, Any] = Field(default_factory=dict)
    """Fields of the pods' spec as Kubernetes names them, above ours: nodeSelector, tolerations."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """Labels of the Job and its pods, such as a queue's."""
    annotations: Mapping[str, str] = Field(default_factory=dict)
    """Annotations of the Job and its pods."""

    @property
    def gives_nodes(self) -> bool:
        """Yes."""
        return True

    @property
    def place(self) -> str:
        """A cluster, as far as the settings tell."""
        return " ".join(str(one) for one in (self.type, self.kubeconfig, self.context))

    @property
    def jobs_folder(self) -> PurePosixPath:
        """A path inside the pods."""
        return PurePosixPath(self.output_dir)

    @property
    def nodes(self) -> int:
        """Each is a pod."""
        return self.num_nodes

    @property
    def instances(self) -> int:
        """The servers that the pods are divided among."""
        return self.num_instances

    @property
    def deployment_without_effect(self) -> Mapping[str, str]:
        """The image of a server alone."""
        return {"image": "the job runs in execution.image, its server too"}

    def resources(self, *, gpus: int) -> Resources:
        """What each pod asks for: its part of the GPUs, or what `gpus` says."""
        if self.gpus is None and gpus % self.num_nodes:
            raise ConfigurationError(
                f"{gpus} GPUs cannot be divided among {self.num_nodes} pods",
                why="tensor_parallel_size, pipeline_parallel_size and data_parallel_size multiply",
                fix="change these or execution.num_nodes, or set execution.gpus",
            )
        if self.gpus is not None and self.gpus * self.num_nodes < gpus:
            raise ConfigurationError(
                f"the job needs {gpus} GPUs, and asks for {self.gpus * self.num_nodes} "
                f"(execution.gpus: {self.gpus}, execution.num_nodes: {self.num_nodes})",
                why="tensor_parallel_size, pipeline_parallel_size and data_parallel_size multiply",
                fix="lower these, raise execution.gpus, or leave it out",
            )
        return Resources(
            nodes=self.num_nodes,
            gpus_per_node=gpus // self.num_nodes if self.gpus is None else self.gpus,
            cpus_per_node=self.cpus,
            memory_gb=self.memory_gb,
            walltime=self.walltime,
        )

    @field_validator("secret_variables")
    @classmethod
    def _name_and_key(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for variable, reference in value.items():
            if not all(reference.partition("/")):
                raise ValueError(f"{variable}: {reference!r} is not NAME/KEY of a Secret")
        return value

    @model_validator(mode="after")
    def _folder_in_a_volume(self) -> Self:
        folder = PurePosixPath(self.output_dir)
        if not folder.is_absolute():
            raise ValueError("output_dir must be absolute: it is a path inside the pods")
        path = _mount_of(folder, self.volumes)
        if path is None:
            raise ValueError(
                f"output_dir {self.output_dir} is in none of the volumes "
                f"({', '.join(self.volumes)}): the results would be lost with the pod"
            )
        if self.volumes[path].read_only:
            raise ValueError(f"output_dir is in {path}, which is read_only")
        return self


class KubernetesExecutor:
    """Runs jobs on a cluster, as its user in the kubeconfig may."""

    name = "kubernetes"
    settings_class = KubernetesSettings

    def __init__(self, settings: KubernetesSettings, context: Context) -> None:
        self._settings = settings
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
        objects = self._objects(job, owner={}, values={})
        if (secret := objects.get("secret")) is not None:
            names = sorted(_secret_names(job))
            secret = {**secret, "data": dict.fromkeys(names, "...")}
            objects["secret"] = secret
        for manifest in objects.values():
            manifest["metadata"].pop("ownerReferences", None)
        script = objects["files"]["data"].pop("job.sh")
        artifacts = [
            Artifact(
                name=f"{manifest['kind']} {manifest['metadata']['name']}", text=_yaml(manifest)
            )
            for manifest in (self._job(job), *objects.values())
        ]
        return [Artifact(name="job.sh", text=script), *artifacts]

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Create the Job, then what it owns; an ended Job of the same name is replaced.

        Blocks until the ended one is gone.
        """
        manifest = self._job(job)  # its errors come before any request
        cluster = await self._cluster()
        name = manifest["metadata"]["name"]
        try:
            await self._remove_ended(cluster, name)
            created = await cluster.create(_BATCH, "jobs", manifest)
            uid = created["metadata"]["uid"]
            try:
                objects = self._objects(job, owner=_owner(name, uid), values=secrets)
                for plural, key in (
                    ("configmaps", "files"),
                    ("secrets", "secret"),
                    ("services", "service"),
                ):
                    if key in objects:
                        await cluster.create("", plural, objects[key])
            except BaseException:
                await asyncio.shield(cluster.delete(_BATCH, "jobs", name, uid=uid))
                raise
        except ApiError as error:
            raise _worded(error, f"the job {job.id} was not submitted", cluster) from error
        return self._handle(job, cluster, uid)

    async def find(self, job: JobSpec) -> Handle | None:
        """By the Job's name."""
        cluster = await self._cluster()
        try:
            there = await cluster.read(_BATCH, "jobs", _name(job.id))
        except ApiError as error:
            raise _worded(error, f"the job {job.id} was not looked for", cluster) from error
        return self._handle(job, cluster, there["metadata"]["uid"]) if there else None

    def _handle(self, job: JobSpec, cluster: Cluster, uid: str) -> Handle:
        reference = {
            "server": cluster.address,
            "namespace": cluster.namespace,
            "name": _name(job.id),
            "uid": uid,
            "job": job.id,
            "image": self._image(job),
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
            selector = f"{_JOB_LABEL} in ({','.join(sorted(ids))})" if len(ids) <= 20 else _all()
            try:
                listed = await cluster.list(_BATCH, "jobs", selector=selector)
                pods += await cluster.list("", "pods", selector=selector)
            except ApiError as error:
                raise _worded(error, "the jobs cannot be listed", cluster) from error
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
            raise _worded(error, "the job's output cannot be read", cluster) from error
        if not read and not follow and status.state.ended and not pods:
            raise JobError(
                "the job has no output any more",
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
        mount = _mount_of(folder, self._settings.volumes)
        volume = self._settings.volumes[mount] if mount is not None else None
        if volume is not None and mount is not None and volume.mounted_here is not None:
            return Path(volume.mounted_here) / folder.relative_to(mount)
        cluster = await self._cluster_of(handle)
        try:
            pods = pods_of(_uid(handle), await self._list_pods(cluster, handle))
            running = [one for one in pods if pod_index(one) == 0 and phase(one) == "Running"]
            if running:
                await _copy(cluster, running[-1]["metadata"]["name"], folder, into)
            else:
                async with _Reader(cluster, self._reader(handle)) as name:
                    await _copy(cluster, name, folder, into)
        except ApiError as error:
            raise _worded(error, "the job's folder cannot be read", cluster) from error
        return into

    async def cancel(self, handle: Handle) -> None:
        """Delete the Job with all that it owns, and wait until no pod is left. Idempotent.

        A Job that has ended stays as it is.
        """
        cluster = await self._cluster_of(handle)
        name, uid = handle.reference["name"], _uid(handle)
        try:
            (status,) = await self.statuses([handle])
            if not status.state.ended and await cluster.delete(_BATCH, "jobs", name, uid=uid):
                await _until_gone(cluster, "jobs", name, uid, group=_BATCH)
        except ApiError as error:
            raise _worded(error, "the job was not cancelled", cluster) from error

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
                why=f"{cluster.source} leads to {cluster.address}",
                fix="`kubectl config use-context` or execution.context chooses the cluster",
                kind="other_cluster",
            )
        return cluster.within(handle.reference["namespace"])

    async def _list_pods(self, cluster: Cluster, handle: Handle) -> list[dict[str, Any]]:
        selector = f"{_JOB_LABEL}={handle.reference['job']}"
        return await cluster.list("", "pods", selector=selector)

    async def _remove_ended(self, cluster: Cluster, name: str) -> None:
        """Delete a Job of that name that has ended. Raises JobError for one that runs."""
        if (old := await cluster.read(_BATCH, "jobs", name)) is None:
            return
        uid = old["metadata"]["uid"]
        if not ended(old) and "deletionTimestamp" not in old["metadata"]:
            raise JobError(
                f"the job {name} still runs in the namespace {cluster.namespace}",
                fix="wait until it has ended, or end it with `enginehouse launch kill`",
                kind="running",
            )
        await cluster.delete(_BATCH, "jobs", name, uid=uid)
        await _until_gone(cluster, "jobs", name, uid, group=_BATCH)

    def _job(self, job: JobSpec) -> dict[str, Any]:
        """The Job's manifest."""
        pods = _pods(job)
        disruption = [{"type": "DisruptionTarget", "status": "True"}]
        spec: dict[str, Any] = {
            "backoffLimit": 0,
            "template": {
                "metadata": self._metadata(job, None),
                "spec": self._pod(job),
            },
            "podFailurePolicy": {
                "rules": [
                    # preemption and lost nodes: a new pod goes on from the job's folder
                    {"action": "Ignore", "onPodConditions": disruption}
                ]
            },
        }
        if job.resources.walltime is not None:
            spec["activeDeadlineSeconds"] = job.resources.walltime
        if pods > 1:
            spec |= {
                "completionMode": "Indexed",
                "completions": pods,
                "parallelism": pods,
                "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            }
        return {
            "apiVersion": _BATCH,
            "kind": "Job",
            "metadata": self._metadata(job, _name(job.id)),
            "spec": spec,
        }

    def _metadata(self, job: JobSpec, name: str | None) -> dict[str, Any]:
        settings = self._settings
        metadata: dict[str, Any] = {
            "labels": {**settings.labels, **_MANAGED, _JOB_LABEL: job.id},
            "annotations": {**settings.annotations, "enginehouse/name": job.name},
        }
        return metadata if name is None else {"name": name, **metadata}

    def _pod(self, job: JobSpec) -> dict[str, Any]:
        container: dict[str, Any] = {
            "name": "job",
            "image": self._image(job),
            "command": ["/bin/sh", f"{_FILES}/job.sh"],
            "volumeMounts": [
                {"name": "files", "mountPath": _FILES, "readOnly": True},
                {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - engines share memory there
            ],
        }
        if variables := [*self._secret_variables(job)]:
            container["env"] = variables
        if limits := self._limits(job):
            container["resources"] = {"limits": limits, "requests": dict(limits)}
        files = {"name": _name(job.id), "items": _items(job)}
        volumes: list[dict[str, Any]] = [
            {"name": "files", "configMap": files},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ]
        for number, (path, volume) in enumerate(self._volumes(job).items()):
            mount: dict[str, Any] = {"name": f"volume-{number}", "mountPath": path}
            container["volumeMounts"].append(
                mount | ({"readOnly": True} if volume.read_only else {})
            )
            volumes.append({"name": f"volume-{number}", **_source(volume)})
        spec: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": _GRACE,
            "shareProcessNamespace": True,  # so that somebody reaps the engine's orphans
            "containers": [container],
            "volumes": volumes,
        }
        if _pods(job) > 1:
            spec["subdomain"] = _name(job.id)
        return spec | dict(self._settings.pod)

    def _reader(self, handle: Handle) -> dict[str, Any]:
        """A pod that mounts the volume of a job's folder, and does nothing."""
        mount = _mount_of(PurePosixPath(handle.folder), self._settings.volumes)
        if mount is None:
            raise JobError(
                f"the job's folder {handle.folder} is in none of the configured volumes",
                fix="use the execution.volumes that the job was submitted with",
                kind="no_volume",
            )
        job_id, name = handle.reference["job"], f"{handle.reference['name']}-copy"
        volume = self._settings.volumes[mount]
        container = {
            "name": "copy",
            "image": handle.reference["image"],
            "command": ["/bin/sh", "-c", f"exec sleep {_COPY_LIFE}"],
            "volumeMounts": [{"name": "volume", "mountPath": mount, "readOnly": True}],
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {**_MANAGED, "enginehouse/copy-of": job_id}},
            "spec": {
                "restartPolicy": "Never",
                "activeDeadlineSeconds": _COPY_LIFE,
                "terminationGracePeriodSeconds": 0,
                "containers": [container],
                "volumes": [{"name": "volume", **_source(volume)}],
            }
            | dict(self._settings.pod),
        }

    def _objects(
        self, job: JobSpec, *, owner: Mapping[str, Any], values: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """What the Job owns: "files" always, "secret" and "service" if there is need."""
        metadata = self._metadata(job, _name(job.id)) | {"ownerReferences": [dict(owner)]}
        data = {"job.sh": self._script(job)}
        data |= {_key(number): text for number, text in enumerate(job.files.values())}
        if sum(len(text.encode()) for text in data.values()) > _LARGEST:
            raise JobError(
                "the job's files are too large for Kubernetes",
                why=f"a ConfigMap holds 1 MiB, and they are {', '.join(job.files)}",
                fix="put large data into a volume (execution.volumes) and name its path there",
                kind="too_large",
            )
        objects: dict[str, dict[str, Any]] = {
            "files": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        }
        if names := sorted(_secret_names(job)):
            encoded = {
                name: base64.b64encode(values[name].encode()).decode()
                for name in names
                if name in values
            }
            objects["secret"] = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": dict(metadata),
                "type": "Opaque",
                "data": encoded,
            }
        if _pods(job) > 1:
            objects["service"] = {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": dict(metadata),
                "spec": {
                    "clusterIP": "None",
                    "publishNotReadyAddresses": True,
                    "selector": {_JOB_LABEL: job.id},
                },
            }
        return objects

    def _script(self, job: JobSpec) -> str:
        """What each pod runs: the command in pod 0, a companion's in the others."""
        folder = shlex.quote(str(job.folder))
        lines = ["#!/bin/sh", "set -e", f"mkdir -p {folder}"]
        main = [f"cp -RL {_FILES}/files/. {folder}/"] if job.files else []
        main += [f"cd {folder}", *_exports(job.environment), *_lines(job.before)]
        main += ["set +e", f"exec {shlex.join(job.command)}"]
        if not job.companions:
            return "\n".join([*lines, *main, ""])
        lines += ['case "$JOB_COMPLETION_INDEX" in', "0)", *main, ";;"]
        head = f"{_name(job.id)}-0.{_name(job.id)}"
        for index, companion in enumerate(_companion_pods(job), 1):
            node = str(job.resources.nodes - 1 + index)
            words = [w.replace("{node}", node).replace("{head}", head) for w in companion.command]
            lines += [
                f"{index})  # {companion.name}",
                f"cd {folder}",
                *_exports(companion.environment),
                *_lines(job.before),
                "set +e",
                f"{shlex.join(words)} &",
                "companion=$!",
                "trap 'kill -TERM $companion; wait $companion; exit 143' TERM",
                "wait $companion",
                "code=$?",
                f'echo "the companion {companion.name} ended by itself with exit code $code" >&2',
                "exit $((code ? code : 1))",
                ";;",
            ]
        return "\n".join([*lines, "esac", ""])

    def _secret_variables(self, job: JobSpec) -> Iterator[dict[str, Any]]:
        references = {name: (_name(job.id), name) for name in sorted(_secret_names(job))}
        for name, text in self._settings.secret_variables.items():
            secret, _, key = text.partition("/")
            references[name] = (secret, key)
        for name, (secret, key) in references.items():
            yield {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}

    def _limits(self, job: JobSpec) -> dict[str, str]:
        resources = job.resources
        amounts = {
            self._settings.gpu_resource: resources.gpus_per_node,
            "cpu": resources.cpus_per_node,
        }
        limits = {name: str(amount) for name, amount in amounts.items() if amount}
        if resources.memory_gb is not None:
            limits["memory"] = f"{round(resources.memory_gb * 1024)}Mi"
        return limits

    def _volumes(self, job: JobSpec) -> dict[str, PodVolume]:
        mounts = job.container.mounts if job.container else {}
        folders = {inside: PodVolume(host_path=outside) for outside, inside in mounts.items()}
        return folders | dict(self._settings.volumes)

    def _image(self, job: JobSpec) -> str:
        image = self._settings.image or (job.container.image if job.container else None)
        if image is None:
            raise JobError(
                "jobs on Kubernetes need an image",
                fix="execution.image names one with Enginehouse and the engine in it",
                kind="no_image",
            )
        for companion in job.companions:
            if companion.container not in (None, job.container):
                raise JobError(
                    f"{companion.name} asks for an image of its own",
                    why="all pods of a job on Kubernetes have one image",
                    fix="use one image that has both",
                    kind="companion_image",
                )
        return image


class _Reader:
    """A pod that only reads a volume, for as long as the block lasts."""

    def __init__(self, cluster: Cluster, manifest: dict[str, Any]) -> None:
        self._cluster = cluster
        self._manifest = manifest
        self._name: str = manifest["metadata"]["name"]

    async def __aenter__(self) -> str:
        with suppress(ApiError):  # one that was left behind
            if await self._cluster.delete("", "pods", self._name):
                await _until_gone(self._cluster, "pods", self._name, None)
        pod = await self._cluster.create("", "pods", self._manifest)
        try:
            await self._until_started(pod)
        except BaseException:
            await asyncio.shield(self.__aexit__())
            raise
        return self._name

    async def __aexit__(self, *exc: object) -> None:
        await self._cluster.delete("", "pods", self._name)

    async def _until_started(self, pod: dict[str, Any]) -> None:
        while phase(pod) == "Pending":
            if (reason := waiting(pod)) is not None and is_final(reason):
                raise JobError(
                    "the job's folder cannot be read",
                    why=f"the pod {self._name}, which is to read it, does not start: {reason}",
                    fix=f"`kubectl describe pod {self._name} -n {self._cluster.namespace}`",
                    kind="no_reader",
                )
            await asyncio.sleep(_POLL)
            pod = await self._cluster.read("", "pods", self._name) or {}


async def _copy(cluster: Cluster, pod: str, folder: PurePosixPath, into: Path) -> None:
    """Copy a folder of a pod into a local one."""
    with tempfile.TemporaryDirectory(dir=into.parent if into.parent.exists() else None) as space:
        archive = Path(space) / "folder.tar"
        await cluster.run(pod, ("tar", "cf", "-", "-C", str(folder), "."), output=archive)
        await asyncio.to_thread(_extract, archive, into)


def _extract(archive: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")


async def _until_gone(
    cluster: Cluster, plural: str, name: str, uid: str | None, *, group: str = ""
) -> None:
    """Wait until no object of that name, or another one, is there."""
    while (found := await cluster.read(group, plural, name)) is not None:
        if uid is not None and found["metadata"]["uid"] != uid:
            return
        await asyncio.sleep(_POLL)


def _worded(error: ApiError, what: str, cluster: Cluster) -> JobError:
    """What the API server's refusal means for a job."""
    namespace = cluster.namespace
    kind, fix = "refused", "the API server's words say what is wrong with it"
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


def _owner(name: str, uid: str) -> dict[str, Any]:
    return {
        "apiVersion": _BATCH,
        "kind": "Job",
        "name": name,
        "uid": uid,
    }


def _all() -> str:
    return ",".join(f"{key}={value}" for key, value in _MANAGED.items())


def _name(job_id: str) -> str:
    return f"enginehouse-{job_id}"


def _key(number: int) -> str:
    return f"file-{number}"


def _items(job: JobSpec) -> list[dict[str, str]]:
    """Where a ConfigMap's entries are mounted, below _FILES."""
    items = [{"key": "job.sh", "path": "job.sh"}]
    items += [{"key": _key(n), "path": f"files/{path}"} for n, path in enumerate(job.files)]
    return items


def _source(volume: PodVolume) -> dict[str, Any]:
    if volume.claim is not None:
        return {"persistentVolumeClaim": {"claimName": volume.claim}}
    return {"hostPath": {"path": volume.host_path, "type": "DirectoryOrCreate"}}


def _mount_of(folder: PurePosixPath, volumes: Mapping[str, PodVolume]) -> str | None:
    """The longest mount path that the folder is in."""
    paths = [path for path in volumes if folder.is_relative_to(path)]
    return max(paths, key=len, default=None)


def _pods(job: JobSpec) -> int:
    """The pods of a job: one for its command, and one for each node of a companion."""
    return 1 + sum(one.nodes for one in job.companions)


def _companion_pods(job: JobSpec) -> Iterator[Companion]:
    """The companion of each pod after the first."""
    for companion in job.companions:
        for _ in range(companion.nodes):
            yield companion


def _secret_names(job: JobSpec) -> frozenset[str]:
    environments = (job.environment, *(one.environment for one in job.companions))
    return frozenset().union(*(one.secrets for one in environments))


def _exports(environment: Environment) -> Iterator[str]:
    for name, value in environment.values.items():
        yield f"export {name}={shlex.quote(value)}"
    for name, source in environment.from_machine.items():
        yield f'export {name}="${source}"'


def _lines(text: str) -> list[str]:
    return text.rstrip().splitlines()


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(manifest: Mapping[str, Any]) -> str:
    return str(yaml.dump(dict(manifest), Dumper=_Dumper, sort_keys=False, width=100))
