"""The section `execution` for Docker."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.base import Resources
from enginehouse.jobs.executors.base import ExecutionSettings, Walltime

# What the executor sets itself, and would no longer find its jobs without.
_OWN_FLAGS = {
    "--detach": "`launch run` returns once the job has started",
    "-d": "`launch run` returns once the job has started",
    "--entrypoint": "the job runs an evaluation",
    "--name": "jobs are found by their names",
    "--restart": "`launch resume` continues a job",
    "--tty": "the job's log is a file",
    "-t": "the job's log is a file",
}


class DockerSettings(ExecutionSettings):
    """Jobs in containers on this machine."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "mode": "all tasks of a job use one server",
    }

    type: Literal["docker"] = "docker"
    image: Annotated[str, Field(min_length=1)]
    """An image with Enginehouse in it."""
    mounts: Mapping[str, str] = Field(default_factory=dict)
    """Folders of this machine and where the container mounts them; append `:ro` for read-only."""
    gpus: Annotated[int, Field(ge=0)] | Literal["all"] | tuple[str, ...] | None = None
    """GPUs: how many, their indices or UUIDs, or `all`; by default as many as are needed."""
    shm_size: str = "16g"
    """The size of the shared memory through which an engine's processes communicate."""
    user: str | None = None
    """The user in the container, such as `1000:1000`; by default the image's."""
    walltime: Walltime | None = None
    """The longest time for a whole job, in seconds."""
    kill_grace: Annotated[int, Field(ge=1)] = 60
    """How long a job may take to stop its server when it is asked to end, in seconds."""
    extra_docker_args: tuple[str, ...] = ()
    """Further flags of `docker create`, as one string or a list."""

    @field_validator("extra_docker_args", mode="before")
    @classmethod
    def _as_words(cls, value: Any) -> Any:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @field_validator("extra_docker_args")
    @classmethod
    def _free_flags(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if (reason := _OWN_FLAGS.get(word.partition("=")[0])) is not None:
                raise ValueError(f"{word} cannot be set: {reason}")
        return words

    @field_validator("mounts")
    @classmethod
    def _absolute(cls, mounts: Mapping[str, str]) -> Mapping[str, str]:
        for outside, inside in mounts.items():
            for path in (outside, inside):
                if not PurePosixPath(path).is_absolute():
                    raise ValueError(f"{outside}: {inside} is not a pair of absolute paths")
        return mounts

    @property
    def deployment_without_effect(self) -> Mapping[str, str]:
        """The image of a server alone."""
        return {"image": "the job runs in execution.image, its server too"}

    def resources(self, *, gpus: int) -> Resources:
        """The GPUs that are given, or those that are needed.

        With `gpus: 0`, GPUs are neither given nor counted.
        """
        given = len(self.gpus) if isinstance(self.gpus, tuple) else self.gpus
        if isinstance(given, int) and 0 < given < gpus:
            raise ConfigurationError(
                f"the job needs {gpus} GPUs, but execution.gpus gives it {given}",
                why="it needs tensor_parallel_size x pipeline_parallel_size x data_parallel_size "
                "GPUs",
                fix="lower these, or give it more GPUs",
            )
        return Resources(
            gpus_per_node=given if isinstance(given, int) else gpus, walltime=self.walltime
        )
