"""What is submitted to an executor, and what an executor says about it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath

import msgspec


class JobState(StrEnum):
    """Where a job is. After PENDING and RUNNING it has ended.

    INTERRUPTED was ended by the machine or the scheduler (time limit, preemption, a lost node) and
    can be resumed; UNKNOWN is a job of which its executor knows nothing any more.
    """

    PENDING = "pending"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether nothing of the job runs any more."""
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one node of a job needs. Zero and None leave it to the executor's own default.

    `walltime` is in seconds, for the whole job.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    memory_gb: float | None = None
    walltime: int | None = None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The variables of a job, by the name that the job sees.

    `values` are written down anywhere. `secrets` names the variables whose values are never
    written to a script, a record or a command line: `submit` is given them. `from_machine` maps a
    name to the variable of the machine where the job runs, which is read there.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    from_machine: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A command that runs beside the job's own for as long as that runs: a server, a Ray worker.

    It runs once on each of `nodes` nodes of its own, after those of the main command. In its words
    `{node}` is the number of its node within the job (from 0, and the main command has node 0), and
    `{head}` the host name of node 0. If one ends by itself, the job fails at once.
    """

    name: str
    command: tuple[str, ...]
    nodes: int = 1
    environment: Environment = Environment()


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A command, and what it needs to run somewhere else.

    `folder` is absolute, on the machine where the job runs; `files` (path relative to it → text)
    are written there before the job is submitted. `command` is an argv, run in `folder`; its
    exit code decides whether the job is complete. Submitting the same job again continues it:
    the command finds in the folder what it did before. `before` are lines of shell that run first
    on every node, such as `module load cuda`.
    """

    id: str
    name: str
    folder: PurePosixPath
    command: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Environment = Environment()
    resources: Resources = Resources()
    companions: tuple[Companion, ...] = ()
    before: str = ""

    @property
    def nodes(self) -> int:
        """All of its nodes, those of its companions included."""
        return self.resources.nodes + sum(companion.nodes for companion in self.companions)


class Handle(msgspec.Struct, frozen=True, kw_only=True):
    """How an executor finds a submitted job again, from another process and after a reboot.

    `reference` is the executor's own: a Slurm job id, a pid and when it started. Never a secret.
    """

    executor: str
    folder: str
    reference: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A job's state as its executor tells it.

    `reason` is the executor's word for it ("TIMEOUT", "Resources", "OOMKilled"); `exit_code` is
    that of the command, where it is known.
    """

    state: JobState
    reason: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Something that submitting a job writes or sends: a script, a manifest, a command line."""

    name: str
    text: str
