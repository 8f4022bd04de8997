"""The section `execution` for Slurm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from enginehouse.jobs.base import Resources
from enginehouse.jobs.executors.base import ExecutionSettings

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)")
_GPUS = re.compile(r"(?:gres/)?gpu(?::[\w.+-]*[A-Za-z_][\w.+-]*)?(?:[:=](?P<count>\d+))?")
# What the executor sets itself, and would no longer find its jobs without.
_OWN_FLAGS = {
    "array": "a launch is one job",
    "chdir": "the job runs in its own folder",
    "dependency": "it belongs to the successor that resumes a job",
    "error": "the job's log is in its own folder",
    "export": "env_vars says what a job is given",
    "export-file": "env_vars says what a job is given",
    "open-mode": "the job's log is in its own folder",
    "output": "the job's log is in its own folder",
    "signal": "`stop_before` says when a job is told to end",
    "test-only": "`enginehouse launch run --dry-run` submits nothing",
    "wait": "`enginehouse launch status` and `logs` tell when a job has ended",
    "wrap": "the job runs an evaluation",
}


def _seconds(value: Any) -> Any:
    """The seconds of HH:MM:SS or D-HH:MM:SS.

    YAML reads an unquoted 1:30:00 as the number 5400, so a number is in seconds, too.
    """
    if isinstance(value, str):
        match = _TIME.fullmatch(value.strip())
        if match is None:
            raise ValueError("is not a time: write it as HH:MM:SS or D-HH:MM:SS")
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if isinstance(value, int) and value < 60:
        raise ValueError("is less than Slurm's minute: write it as HH:MM:SS")
    return value


Time = Annotated[int, Field(ge=60), BeforeValidator(_seconds)]
Word = Annotated[str, Field(pattern=r"^[^\s\"'\\]+$")]
"""A name that is written into a line of the batch script as it is."""


class SlurmSettings(ExecutionSettings):
    """Jobs on a Slurm cluster."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "cpu_partition": "exports run where `enginehouse launch export` is called",
        "endpoint_readiness_timeout": "a server has failed when it ends, or makes no progress",
        "deployment": "each node runs one process of a deployment",
        "proxy": "the client balances the instances itself",
    }

    type: Literal["slurm"] = "slurm"
    hostname: Word | None = None
    """The login node, reached with ssh and without a password; by default, sbatch runs here."""
    username: Word | None = None
    """The user name on the login node; by default that of ssh's own configuration."""
    ssh_options: Mapping[Word, str | int] = {}
    """Options of ssh, as in its configuration file: `{Port: 2222, ProxyJump: gateway}`."""
    account: Word | None = None
    partition: Word | None = None
    num_nodes: Annotated[int, Field(ge=1)] = 1
    """The nodes of a job, over all of its instances."""
    num_instances: Annotated[int, Field(ge=1)] = 1
    """The independent instances that the nodes are divided among."""
    ntasks_per_node: Annotated[int, Field(ge=1)] = 1
    gres: Word | None = None
    """Generic resources of each node: `gpu:8`."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """The GPUs of each node, on clusters where `gres` is not used."""
    walltime: Time = 3600
    """The time limit of one attempt, as HH:MM:SS or D-HH:MM:SS."""
    max_walltime: Time | None = None
    """The time limit of all attempts together; a job that is interrupted resumes until then.

    Without it, an interrupted job stays as it is until `enginehouse launch resume`.
    """
    stop_before: Annotated[int, Field(ge=0)] = 120
    """How many seconds before its time limit an attempt is told to end, and stops its server."""
    requeue: bool = True
    """Whether Slurm may run a job again whose node failed, or that was preempted."""
    subproject: Word | None = None
    """A prefix of the job's name, after the account."""
    sbatch_comment: str | None = None
    sbatch_extra_flags: Mapping[Word, str | int | float | bool | None] = {}
    """Further flags of sbatch: `{qos: high, exclusive: true}`; null or false leaves one out."""

    @field_validator("output_dir")
    @classmethod
    def _absolute(cls, folder: str) -> str:
        """It is a path of the compute nodes."""
        if not PurePosixPath(folder).is_absolute():
            raise ValueError("must be an absolute path that the compute nodes see, too")
        if "\n" in folder or '"' in folder or "\\" in folder:
            raise ValueError("contains a character that a batch script cannot have in a path")
        return folder

    @field_validator("sbatch_extra_flags")
    @classmethod
    def _free_flags(cls, flags: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in flags.items():
            if (reason := _OWN_FLAGS.get(name.lstrip("-"))) is not None:
                raise ValueError(f"{name} cannot be set: {reason}")
            if "\n" in str(value):
                raise ValueError(f"the value of {name} has more than one line")
        return flags

    @model_validator(mode="after")
    def _consistent(self) -> SlurmSettings:
        if self.sbatch_comment is not None and "\n" in self.sbatch_comment:
            raise ValueError("sbatch_comment has more than one line")
        if self.max_walltime is not None and self.max_walltime < self.walltime:
            raise ValueError("max_walltime is shorter than walltime")
        if self.num_nodes % self.num_instances:
            raise ValueError(
                f"num_nodes ({self.num_nodes}) cannot be divided among"
                f" {self.num_instances} instances (num_instances)"
            )
        return self

    def resources(self) -> Resources:
        """What the section asks for."""
        return Resources(
            nodes=self.num_nodes, gpus_per_node=self._gpus() or 0, walltime=self.walltime
        )

    def _gpus(self) -> int | None:
        """The GPUs of each node that `gpus_per_node` or `gres` asks for."""
        if self.gpus_per_node is not None:
            return self.gpus_per_node
        counts = [
            int(match["count"] or 1)
            for part in (self.gres or "").split(",")
            if (match := _GPUS.fullmatch(part))
        ]
        return sum(counts) if counts else None
