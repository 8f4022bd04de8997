"""The section `execution` of jobs on a Kubernetes cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from enginehouse.core.strict_model import StrictModel
from enginehouse.jobs.base import Resources
from enginehouse.jobs.executors.base import ExecutionSettings, Walltime, gpus_on_each

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
    """Where this machine mounts the same volume; results are then not copied."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.claim is None) == (self.host_path is None):
            raise ValueError("give either claim or host_path")
        return self


class KubernetesSettings(ExecutionSettings):
    """Jobs on a Kubernetes cluster."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "mode": "all tasks of a job use one server",
    }

    type: Literal["kubernetes"] = "kubernetes"
    volumes: Annotated[Mapping[str, PodVolume], Field(min_length=1)]
    """The volumes, by mount path; `output_dir` must be in one of them."""
    image: str | None = None
    """The image of all pods, with Enginehouse and the engine in it."""
    kubeconfig: str | None = None
    """The kubeconfig file; by default $KUBECONFIG or ~/.kube/config, or the pod's own account."""
    context: str | None = None
    """The kubeconfig's context; by default its current one."""
    namespace: str | None = None
    """The namespace; by default the context's."""
    num_nodes: Count = 1
    """The number of pods, over all servers of a job."""
    num_instances: Count = 1
    """The number of servers: one per pod, or one over all pods; a single pod can run several."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """The GPUs of each pod; by default, what the servers need. 0: none are asked for or counted."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    cpus: Count | None = None
    """The CPU cores of each pod."""
    memory_gb: Gigabytes | None = None
    """The memory of each pod, in GiB."""
    walltime: Walltime | None = None
    """The longest time for a whole job, in seconds, from its first pod on."""
    secret_variables: Mapping[str, str] = Field(default_factory=dict)
    """Variables from existing Secrets of the namespace: `HF_TOKEN: NAME/KEY`."""
    pod: Mapping[str, Any] = Field(default_factory=dict)
    """Fields of the pods' spec that override ours, as Kubernetes names them: nodeSelector,
    tolerations."""
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
        return Resources(
            nodes=self.num_nodes,
            gpus_per_node=gpus_on_each(
                gpus, nodes=self.num_nodes, given=self.gpus, option="gpus", node="pod"
            ),
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
        path = mount_of(folder, self.volumes)
        if path is None:
            raise ValueError(
                f"output_dir {self.output_dir} is in none of the volumes "
                f"({', '.join(self.volumes)}): the results would be lost with the pod"
            )
        if self.volumes[path].read_only:
            raise ValueError(f"output_dir is in {path}, which is read_only")
        return self


def mount_of(folder: PurePosixPath, volumes: Mapping[str, PodVolume]) -> str | None:
    """The longest mount path that the folder is in."""
    paths = [path for path in volumes if folder.is_relative_to(path)]
    return max(paths, key=len, default=None)
