"""The section `execution` for Slurm."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from enginehouse.core.strict_model import StrictModel
from enginehouse.jobs.base import Resources
from enginehouse.jobs.executors.base import ExecutionSettings, as_seconds, gpus_on_each

_GPUS = re.compile(r"(?:gres/)?gpu(?::[\w.+-]*[A-Za-z_][\w.+-]*)?(?:[:=](?P<count>\d+))?")
# What the executor sets itself, and would no longer find its jobs without.
_OWN_FLAGS = {
    "array": "a launch is one job",
    "chdir": "the job runs in its own folder",
    "dependency": "it belongs to the successor that resumes a job",
    "error": "the job's log is in its own folder",
    "export": "env_vars lists the variables of a job",
    "export-file": "env_vars lists the variables of a job",
    "open-mode": "the job's log is in its own folder",
    "output": "the job's log is in its own folder",
    "signal": "`stop_before` determines when a job is asked to end",
    "test-only": "`enginehouse launch run --dry-run` submits nothing",
    "wait": "see `enginehouse launch status` and `logs`",
    "wrap": "the job runs an evaluation",
}


@dataclass(frozen=True, kw_only=True)
class Container:
    """An image that commands run in, by pyxis.

    `mounts` maps a path outside to one inside. Both sides are absolute.
    """

    image: str
    mounts: Mapping[str, str]
    mount_home: bool


def _seconds(value: Any) -> Any:
    if isinstance(value, str) and value.strip().isdecimal():
        raise ValueError("is not a time: write it as HH:MM:SS or D-HH:MM:SS")
    if isinstance(value, int) and value < 60:
        raise ValueError("is less than a minute, Slurm's unit: write it as HH:MM:SS")
    return as_seconds(value)


Time = Annotated[int, Field(ge=60), BeforeValidator(_seconds)]
Word = Annotated[str, Field(pattern=r"^[^\s\"'\\-][^\s\"'\\]*$")]
"""A name that is written into a line of the batch script as it is."""


class SlurmMounts(StrictModel):
    """Folders that a container sees, as `outside: inside`; without an image they have no effect."""

    deployment: Mapping[str, str] = {}
    evaluation: Mapping[str, str] = {}
    auxiliary: Mapping[str, Mapping[str, str]] = {}
    mount_home: bool = True
    """Mount the home folder, too."""


class SlurmSettings(ExecutionSettings):
    """Jobs on a Slurm cluster."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "cpu_partition": "exports run where `enginehouse launch export` is called",
        "endpoint_readiness_timeout": "a server has failed when it ends, or makes no progress",
        "deployment": "each node runs one process of a deployment",
        "proxy": "the client balances requests among instances",
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
    """The number of nodes, over all instances of a job."""
    num_instances: Annotated[int, Field(ge=1)] = 1
    """The number of independent instances, among which the nodes, or one node's GPUs, are
    divided."""
    ntasks_per_node: Annotated[int, Field(ge=1)] = 1
    gres: Word | None = None
    """Generic resources of each node: `gpu:8`."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """The GPUs of each node, on clusters where `gres` is not used."""
    walltime: Time = 3600
    """The time limit of one attempt, as HH:MM:SS or D-HH:MM:SS."""
    max_walltime: Time | None = None
    """The time limit of all attempts together; until then, an interrupted job resumes.

    Without it, an interrupted job waits for `enginehouse launch resume`.
    """
    stop_before: Annotated[int, Field(ge=0)] = 120
    """How many seconds before its time limit an attempt begins to stop its server and end."""
    requeue: bool = True
    """Whether Slurm may requeue a job after a node failure or preemption."""
    image: Word | None = None
    """An image with Enginehouse in it, in which pyxis runs jobs; by default none."""
    mounts: SlurmMounts = SlurmMounts()
    """Folders that the container mounts along with the job's."""
    subproject: Word | None = None
    """A prefix of the job's name, after the account."""
    sbatch_comment: str | None = None
    sbatch_extra_flags: Mapping[Word, str | int | float | bool | None] = {}
    """Further flags of sbatch: `{qos: high, exclusive: true}`; null or false leaves one out."""

    @field_validator("output_dir")
    @classmethod
    def _a_plain_path(cls, folder: str) -> str:
        if "\n" in folder or '"' in folder or "\\" in folder:
            raise ValueError("contains a character that paths in a batch script must not have")
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
        if self.hostname is not None and not PurePosixPath(self.output_dir).is_absolute():
            raise ValueError(
                "output_dir must be an absolute path: jobs run on the cluster, not here"
            )
        if self.sbatch_comment is not None and "\n" in self.sbatch_comment:
            raise ValueError("sbatch_comment has more than one line")
        if self.max_walltime is not None and self.max_walltime < self.walltime:
            raise ValueError("max_walltime is shorter than walltime")
        return self

    @property
    def gives_nodes(self) -> bool:
        """Yes."""
        return True

    @property
    def nodes(self) -> int:
        """The nodes of a job, over all of its servers."""
        return self.num_nodes

    @property
    def instances(self) -> int:
        """The servers that the nodes are divided among."""
        return self.num_instances

    @property
    def place(self) -> str:
        """The cluster: this machine's, or that of a login node and a user there."""
        user = f"{self.username}@" if self.username else ""
        return f"slurm on {user}{self.hostname}" if self.hostname else "slurm"

    @property
    def jobs_folder(self) -> PurePosixPath:
        """`output_dir`; relative to the current folder only where sbatch runs here."""
        return PurePosixPath(self.output_dir) if self.hostname else super().jobs_folder

    @property
    def without_effect(self) -> Mapping[str, str]:
        """Mounts, if there is no container."""
        if self.image is not None or self.mounts == SlurmMounts():
            return {}
        return {
            "mounts": "without execution.image there is no container: jobs see the nodes' paths"
        }

    @property
    def deployment_without_effect(self) -> Mapping[str, str]:
        """The image of a server alone."""
        if self.image is not None:
            return {"image": "the job runs in execution.image, its server too"}
        return {"image": "without execution.image, jobs run without containers"}

    @property
    def command_words(self) -> tuple[str, ...]:
        """Enginehouse as it runs here, if sbatch does, too; otherwise the one of the cluster."""
        here = (sys.executable, "-m", "enginehouse")
        return self.command or (("enginehouse",) if self.hostname else here)

    def resources(self, *, gpus: int) -> Resources:
        """The nodes, and their GPUs: those of `gres` or `gpus_per_node`, or just what is needed.

        With `gpus_per_node: 0`, GPUs are neither asked for nor counted.
        """
        return Resources(
            nodes=self.num_nodes,
            gpus_per_node=gpus_on_each(
                gpus, nodes=self.num_nodes, given=self._gpus(), option="gres"
            ),
            walltime=self.walltime,
        )

    @property
    def container(self) -> Container | None:
        """The container of all commands of a job; None runs them without one."""
        if self.image is None:
            return None
        mounts = {**self.mounts.deployment, **self.mounts.evaluation}
        for others in self.mounts.auxiliary.values():
            mounts |= others
        return Container(image=self.image, mounts=mounts, mount_home=self.mounts.mount_home)

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
