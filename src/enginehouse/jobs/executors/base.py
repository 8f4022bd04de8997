"""What an executor is: it submits, watches, fetches and cancels jobs on one kind of machine.

Each executor is a file or a folder here with two classes, its settings and itself, and is named in
`registry.py`. All pass the suite in `enginehouse.testing.check_executor`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Protocol, Self, runtime_checkable

from pydantic import BeforeValidator, Field, model_validator

from enginehouse.core.errors import ConfigurationError, JobError
from enginehouse.core.strict_model import StrictModel
from enginehouse.jobs.base import Artifact, Handle, JobSpec, JobStatus, Resources

_TIME = re.compile(r"(?:(?P<days>\d{1,6})-)?(?P<hours>\d{1,6}):(?P<minutes>\d\d):(?P<seconds>\d\d)")


def as_seconds(value: Any) -> Any:
    """The seconds of HH:MM:SS or D-HH:MM:SS; anything that is not such a text is left as it is.

    YAML reads an unquoted 1:30:00 as the number 5400, so a number is in seconds, too.
    """
    if not isinstance(value, str) or value.strip().isdecimal():
        return value
    match = _TIME.fullmatch(value.strip())
    if match is None:
        raise ValueError("is not a time: write it as HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


Walltime = Annotated[int, Field(ge=1), BeforeValidator(as_seconds)]


def gpus_on_each(
    needed: int, *, nodes: int, given: int | None, option: str, node: str = "node"
) -> int:
    """The GPUs of each node: those that its `option` gives, or an equal part of all that is needed.

    With 0 given, GPUs are neither reserved nor counted. Raises ConfigurationError for parts that
    are not whole, and for nodes that have too few together.
    """
    why = "tensor_parallel_size, pipeline_parallel_size and data_parallel_size multiply"
    if given is None and needed % nodes:
        raise ConfigurationError(
            f"{needed} GPUs cannot be divided among {nodes} {node}s",
            why=why,
            fix=f"change these or execution.num_nodes, or set execution.{option}",
        )
    if given and needed > given * nodes:
        raise ConfigurationError(
            f"the job needs {needed} GPUs, but asks for {given * nodes}: "
            f"{given} on each of {nodes} {node}s",
            why=why,
            fix=f"lower these, or raise execution.num_nodes or execution.{option}",
        )
    return needed // nodes if given is None else given


def still_running(message: str) -> JobError:
    """The error of a job that is submitted again before it has ended."""
    return JobError(
        message,
        fix="wait until it ends, or stop it with `enginehouse launch kill`",
        kind="running",
    )


class ExecutionVariables(StrictModel):
    """The part `env_vars` of `execution`, as older files have it."""

    not_acted_on: ClassVar[Mapping[str, str]] = {}

    deployment: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Variables of the server; the same as deployment.env_vars."""
    evaluation: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Variables of the job; the same as evaluation.env_vars."""
    export: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Variables of the job, for its export's sake; the same as export.env_vars."""


class AutoExport(StrictModel):
    """The part `auto_export` of `execution`: which sections of `export` act at a job's end."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "launcher_install_cmd": "the job exports with the Enginehouse that it runs",
        "export_image": "the job exports with the Enginehouse that it runs",
        "export_mounts": "the job exports with the Enginehouse that it runs",
    }

    destinations: tuple[str, ...] = ()
    """The names of the sections."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"destinations": value} if isinstance(value, list | tuple) else value


class ExecutionSettings(StrictModel):
    """The section `execution` of a launch configuration: what all executors have in common."""

    not_acted_on: ClassVar[Mapping[str, str]] = {}
    """Keys of the original launcher that are accepted and have no effect, and why."""

    type: str
    """The executor's name."""
    output_dir: Annotated[str, Field(min_length=1)]
    """The folder of the jobs, where they run; relative to the current one for local jobs."""
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """How Enginehouse is started where the job runs; by default `enginehouse`."""
    env_vars: ExecutionVariables = ExecutionVariables()
    """Variables of the server and of the job."""
    auto_export: AutoExport | None = None
    """Which sections of `export` act at the end of a job; by default all of them."""

    @property
    def place(self) -> str:
        """Where jobs are: the status of all jobs of one place is asked for at once.

        Settings of the same place differ only in what a single job needs.
        """
        return self.type

    @property
    def gives_nodes(self) -> bool:
        """Whether each companion of a job gets a node of its own."""
        return False

    @property
    def runs_here(self) -> bool:
        """Whether a job sees this machine's files under their names here."""
        return False

    @property
    def jobs_folder(self) -> PurePosixPath:
        """`output_dir`, absolute, on the machine where jobs run: by default, this one's."""
        return PurePosixPath(Path(self.output_dir).expanduser().absolute())

    @property
    def server_address(self) -> str | None:
        """Stands for the address of a server that the executor deploys; None if the job does.

        The executor replaces it in the job's files.
        """
        return None

    @property
    def server_key(self) -> str | None:
        """The variable of the job that has the key of a server that the executor deploys."""
        return None

    @property
    def deployment_without_effect(self) -> Mapping[str, str]:
        """Keys of a deployment that have no effect with these settings, and why."""
        return {"image": f"{self.type} jobs run without containers"}

    @property
    def has_ray(self) -> bool:
        """Whether a job runs in a Ray cluster, which its server may use."""
        return False

    def completed(self, deployment: Any) -> Self:
        """These settings with what the section `deployment` says about where the server runs."""
        del deployment
        return self

    @property
    def command_words(self) -> tuple[str, ...]:
        """How Enginehouse is started where a job runs."""
        return self.command or ("enginehouse",)

    @property
    def nodes(self) -> int:
        """The nodes of a job, over all of its servers."""
        return 1

    @property
    def instances(self) -> int:
        """The servers that its nodes are divided among, or one node's GPUs if there is one."""
        return 1

    @property
    def without_effect(self) -> Mapping[str, str]:
        """Keys that are given and have no effect beside the others, and why."""
        return {}

    def resources(self, *, gpus: int) -> Resources:
        """What a job asks for whose servers need `gpus` GPUs together.

        Raises ConfigurationError if what is asked for is not what is needed.
        """
        return Resources(gpus_per_node=gpus)


class Executor(Protocol):
    """Jobs on one kind of machine. Methods raise JobError, which says what to do next.

    An executor is an async context manager: leaving it closes its connections, and never touches
    a job.
    """

    name: str

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    def render(self, job: JobSpec) -> Sequence[Artifact]:
        """Everything that `submit` would write, send or run, without the values of secrets.

        Pure: nothing is written, and no machine is asked.
        """
        ...

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Start the job, or queue it. Nothing is left behind if it raises.

        `secrets` has a value for each name in the job's environments. Submitting a job whose folder
        exists continues it.
        """
        ...

    async def statuses(self, handles: Sequence[Handle]) -> Sequence[JobStatus]:
        """Where the jobs are, in the order of `handles`; asked for all of them at once."""
        ...

    def logs(self, handle: Handle, *, follow: bool) -> AsyncIterator[str]:
        """The job's output so far, in pieces; with `follow`, until the job has ended."""
        ...

    async def fetch(self, handle: Handle, into: Path) -> Path:
        """A local folder with what the job's folder holds now.

        Where that folder can be read from here, it is returned as it is, and nothing is copied.
        """
        ...

    async def cancel(self, handle: Handle) -> None:
        """End the job and return when no job, process or container of it is left. Idempotent."""
        ...


@runtime_checkable
class SupportsCheck(Protocol):
    """An executor that knows without asking another machine that a job cannot run."""

    def check(self, job: JobSpec) -> None:
        """Raise JobError, as `submit` would, if this machine cannot run the job."""
        ...


@runtime_checkable
class SupportsRecovery(Protocol):
    """An executor that finds a job whose launcher was killed before it noted the handle."""

    async def find(self, job: JobSpec) -> Handle | None:
        """The handle of the job's last submission; None if it was not submitted."""
        ...
