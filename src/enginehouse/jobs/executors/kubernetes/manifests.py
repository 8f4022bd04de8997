"""The objects of a job on Kubernetes, as plain data.

The Job is an Indexed Job if there are companions: pod 0 runs the command, the others a companion
each, and the Job is complete when pod 0 is.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Companion, Environment, Handle, JobSpec
from enginehouse.jobs.executors.kubernetes.settings import (
    KubernetesSettings,
    PodVolume,
    mount_of,
)

BATCH = "batch/v1"
MANAGED = {"app.kubernetes.io/managed-by": "enginehouse"}
JOB_LABEL = "enginehouse/job"
_FILES = "/enginehouse-job"  # where the script and the job's files are mounted
_NO_IMAGE = "(missing: execution.image)"
_GRACE = 60  # seconds between SIGTERM and SIGKILL: servers are stopped and the journal is closed
_LARGEST = 900_000  # bytes of a job's files; a ConfigMap holds 1 MiB
_COPY_LIFE = 3600  # seconds until a pod that only reads a volume ends by itself


class Manifests:
    """The objects of jobs with these settings."""

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings

    def job(self, job: JobSpec) -> dict[str, Any]:
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
            "apiVersion": BATCH,
            "kind": "Job",
            "metadata": self._metadata(job, name_of(job.id)),
            "spec": spec,
        }

    def _metadata(self, job: JobSpec, name: str | None) -> dict[str, Any]:
        settings = self._settings
        metadata: dict[str, Any] = {
            "labels": {**settings.labels, **MANAGED, JOB_LABEL: job.id},
            "annotations": {**settings.annotations, "enginehouse/name": job.name},
        }
        return metadata if name is None else {"name": name, **metadata}

    def _pod(self, job: JobSpec) -> dict[str, Any]:
        container: dict[str, Any] = {
            "name": "job",
            "image": self._settings.image or _NO_IMAGE,
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
        files = {"name": name_of(job.id), "items": _items(job)}
        volumes: list[dict[str, Any]] = [
            {"name": "files", "configMap": files},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ]
        for number, (path, volume) in enumerate(self._settings.volumes.items()):
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
            spec["subdomain"] = name_of(job.id)
        return spec | dict(self._settings.pod)

    def reader(self, handle: Handle) -> dict[str, Any]:
        """A pod that mounts the volume of a job's folder, and does nothing."""
        mount = mount_of(PurePosixPath(handle.folder), self._settings.volumes)
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
            "metadata": {"name": name, "labels": {**MANAGED, "enginehouse/copy-of": job_id}},
            "spec": {
                "restartPolicy": "Never",
                "activeDeadlineSeconds": _COPY_LIFE,
                "terminationGracePeriodSeconds": 0,
                "containers": [container],
                "volumes": [{"name": "volume", **_source(volume)}],
            }
            | dict(self._settings.pod),
        }

    def objects(
        self, job: JobSpec, *, owner: Mapping[str, Any], values: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """What the Job owns: "files" always, "secret" and "service" if there is need."""
        metadata = self._metadata(job, name_of(job.id)) | {"ownerReferences": [dict(owner)]}
        data = {"job.sh": self._script(job)}
        data |= {_key(number): text for number, text in enumerate(job.files.values())}
        if sum(len(text.encode()) for text in data.values()) > _LARGEST:
            raise JobError(
                "the job's files are too large for Kubernetes",
                why=f"a ConfigMap holds at most 1 MiB; the files are {', '.join(job.files)}",
                fix="put large data into a volume (execution.volumes) and name its path there",
                kind="too_large",
            )
        objects: dict[str, dict[str, Any]] = {
            "files": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        }
        if names := sorted(secret_names(job)):
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
                    "selector": {JOB_LABEL: job.id},
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
        head = f"{name_of(job.id)}-0.{name_of(job.id)}"
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
                (
                    f'echo "the companion {companion.name} ended unexpectedly '
                    'with exit code $code" >&2'
                ),
                "exit $((code ? code : 1))",
                ";;",
            ]
        return "\n".join([*lines, "esac", ""])

    def _secret_variables(self, job: JobSpec) -> Iterator[dict[str, Any]]:
        references = {name: (name_of(job.id), name) for name in sorted(secret_names(job))}
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

    def image(self) -> str:
        """The image of all pods. Raises JobError if none is named."""
        if self._settings.image is None:
            raise JobError(
                "jobs on Kubernetes need an image",
                fix="execution.image names one with Enginehouse and the engine in it",
                kind="no_image",
            )
        return self._settings.image


def owner_of(name: str, uid: str) -> dict[str, Any]:
    """A reference to the Job that an object is removed with."""
    return {
        "apiVersion": BATCH,
        "kind": "Job",
        "name": name,
        "uid": uid,
    }


def name_of(job_id: str) -> str:
    """The name of a job's objects."""
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


def _pods(job: JobSpec) -> int:
    """The pods of a job: one for its command, and one for each node of a companion."""
    return 1 + sum(one.nodes for one in job.companions)


def _companion_pods(job: JobSpec) -> Iterator[Companion]:
    """The companion of each pod after the first."""
    for companion in job.companions:
        for _ in range(companion.nodes):
            yield companion


def secret_names(job: JobSpec) -> frozenset[str]:
    """The variables that a Secret holds."""
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


def as_yaml(manifest: Mapping[str, Any]) -> str:
    """A manifest as text."""
    return str(yaml.dump(dict(manifest), Dumper=_Dumper, sort_keys=False, width=100))
