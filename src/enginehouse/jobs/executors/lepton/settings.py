"""The section `execution` of jobs on Lepton."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.strict_model import StrictModel
from enginehouse.jobs.base import Resources
from enginehouse.jobs.executors.base import ExecutionSettings
from enginehouse.jobs.executors.lepton.endpoint import ADDRESS, DEFAULT_STORAGE, endpoint_spec

_MOUNT_KEYS = {"from", "path", "mount_path", "mount_options"}


class EvaluationJobs(StrictModel):
    """The section `evaluation_tasks`: the job that evaluates."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "use_shared_storage": "the job's folder is in its first mount",
    }

    resource_shape: str = "cpu.small"
    """What the job gets."""
    timeout: Annotated[int, Field(ge=1)] = 3600
    """The longest wait for the endpoint to be ready, in seconds."""


class EndpointPlatform(StrictModel):
    """The section `lepton_platform.deployment`."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "endpoint_readiness_timeout": "the job waits for the endpoint: evaluation_tasks.timeout",
    }

    node_group: str | None = None
    """The node group of the endpoint."""
    platform_defaults: Mapping[str, Any] = Field(default_factory=dict)
    """Fields of the endpoint as Lepton names them; those of lepton_config stand above them."""


class JobPlatform(StrictModel):
    """The section `lepton_platform.tasks`."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "api_tokens": "a job has no address, so it needs no token",
    }

    node_group: str | None = None
    """The node group of the job."""
    env_vars: Mapping[str, Any] = Field(default_factory=dict)
    """Variables; secrets by `value_from: {secret_name_ref: NAME}`. API_KEY is the endpoint's."""
    mounts: Annotated[tuple[Mapping[str, Any], ...], Field(min_length=1)]
    """Storage: `from`, `path` and `mount_path`. The job's folder is in the first one."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets of the image's registry."""

    @field_validator("mounts")
    @classmethod
    def _complete(cls, mounts: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
        for mount in mounts:
            if not {"path", "mount_path"} <= mount.keys() <= _MOUNT_KEYS:
                raise ValueError(f"{dict(mount)}: a mount has from, path and mount_path")
        return mounts


class LeptonPlatform(StrictModel):
    """The section `lepton_platform`."""

    not_acted_on: ClassVar[Mapping[str, str]] = {}

    deployment: EndpointPlatform = EndpointPlatform()
    """Where the endpoint runs."""
    tasks: JobPlatform
    """Where the job runs."""


class LeptonSettings(ExecutionSettings):
    """Jobs on Lepton."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "env_var_names": "variables are named by env_vars or lepton_platform.tasks.env_vars",
        "mode": "all tasks of a job use one endpoint",
    }

    type: Literal["lepton"] = "lepton"
    image: str | None = None
    """The job's image, with Enginehouse in it."""
    mounted_here: str | None = None
    """Where this machine has the job's first mount, from which results are read."""
    evaluation_tasks: EvaluationJobs = EvaluationJobs()
    """The job that evaluates."""
    lepton_platform: LeptonPlatform
    """Where on Lepton."""
    endpoint: Mapping[str, Any] | None = None
    """Lepton's specification of the endpoint; by default made from the deployment."""
    endpoint_name: str = "server"
    """The beginning of the endpoint's name; by default deployment.lepton_config's."""

    @model_validator(mode="after")
    def _folder_in_the_mount(self) -> Self:
        mount = self.lepton_platform.tasks.mounts[0]["mount_path"]
        if not self.jobs_folder.is_relative_to(mount):
            raise ValueError(f"output_dir {self.output_dir} is not in {mount}, the first mount")
        return self

    @property
    def jobs_folder(self) -> PurePosixPath:
        """In the first mount of the tasks."""
        return PurePosixPath(self.lepton_platform.tasks.mounts[0]["mount_path"]) / self.output_dir

    @property
    def deployment_without_effect(self) -> Mapping[str, str]:
        """None: the endpoint runs in the deployment's image."""
        return {}

    @property
    def server_address(self) -> str | None:
        """That of the endpoint, which is not known yet."""
        return ADDRESS if self.endpoint is not None else None

    @property
    def server_key(self) -> str | None:
        """The variable of the job that has the endpoint's token."""
        return "API_KEY" if "API_KEY" in self.lepton_platform.tasks.env_vars else None

    def completed(self, deployment: Any) -> Self:
        """With the endpoint of a deployment that has a `lepton_config`."""
        if self.endpoint is not None or not deployment.deployed:
            return self
        config = deployment.lepton_config
        if config is None or config.resource_shape is None:
            raise ConfigurationError(
                "a server on Lepton is an endpoint, but the file does not say of which shape",
                fix="give deployment.lepton_config.resource_shape",
            )
        if config.gpus is not None and config.gpus < deployment.gpus:
            raise ConfigurationError(
                f"the server needs {deployment.gpus} GPUs, but {config.resource_shape} has "
                f"{config.gpus}",
                why="one replica needs tensor x pipeline x data parallel GPUs",
                fix="choose a larger deployment.lepton_config.resource_shape",
            )
        platform = self.lepton_platform
        spec = endpoint_spec(
            deployment,
            defaults=platform.deployment.platform_defaults,
            storage=platform.tasks.mounts[0].get("from", DEFAULT_STORAGE),
        )
        return self.model_copy(update={"endpoint": spec, "endpoint_name": config.endpoint_name})

    def resources(self, *, gpus: int) -> Resources:
        """The job itself needs none: shapes say what jobs and endpoints get."""
        return Resources(gpus_per_node=gpus)
