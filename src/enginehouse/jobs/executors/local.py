"""Jobs on this machine, each a process that outlives the command that submitted it.

A job's folder has `job.json` (what runs, without secrets), `log.txt` (its output) and, once it has
ended, `end.json`. Its process is `enginehouse.jobs.local_process`.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import msgspec
from filelock import FileLock
from pydantic import Field

from enginehouse.core.errors import ConfigurationError, JobError, UnknownNameError
from enginehouse.core.system_errors import worded
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
from enginehouse.jobs.executors.base import ExecutionSettings, Walltime, still_running
from enginehouse.jobs.local_process import (
    CANCEL,
    END,
    JOB,
    LOG,
    End,
    LocalCommand,
    LocalJob,
    read_begun,
    read_end,
    read_processes,
)
from enginehouse.jobs.log_file import read_log
from enginehouse.processes.gpus import read_gpus
from enginehouse.processes.tree import (
    ProcessIdentity,
    ProcessTree,
    identify,
    is_alive,
    this_process,
)
from enginehouse.runtime.context import Context
from enginehouse.servers.records import list_servers
from enginehouse.servers.stopping import stop_server
from enginehouse.store.files import write_whole
from enginehouse.store.private import make_private, open_private

_LOCK = "job.lock"
_POLL = 0.1
_BEGIN = 20.0  # seconds until a job's process has begun, on a busy machine


class LocalSettings(ExecutionSettings):
    """Jobs on this machine."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "mode": "all tasks of a job use one server",
        "extra_docker_args": "local jobs run without Docker; see `execution: docker`",
        "mounts": "local jobs run without containers, and see this machine's paths",
    }

    type: Literal["local"] = "local"
    gpus: Annotated[int, Field(ge=0)] | None = None
    """The number of GPUs that a job may use; by default all of this machine."""
    num_instances: Annotated[int, Field(ge=1)] = 1
    """The servers that share this machine's GPUs or cores, and the requests."""
    walltime: Walltime | None = None
    """The longest time for a whole job, in seconds."""
    kill_grace: Annotated[float, Field(gt=0)] = 60.0
    """The longest time for a job to stop its server when it is to end, in seconds."""

    @property
    def runs_here(self) -> bool:
        """It does."""
        return True

    @property
    def instances(self) -> int:
        """The servers on this machine."""
        return self.num_instances

    @property
    def command_words(self) -> tuple[str, ...]:
        """Enginehouse as it runs here, unless `command` says otherwise."""
        return self.command or (sys.executable, "-m", "enginehouse")

    def resources(self, *, gpus: int) -> Resources:
        """The GPUs that are needed, on one node."""
        if self.gpus is not None and gpus > self.gpus:
            raise ConfigurationError(
                f"the job needs {gpus} GPUs, but execution.gpus allows {self.gpus}",
                why="it needs tensor_parallel_size x pipeline_parallel_size x data_parallel_size "
                "GPUs",
                fix="lower these, or allow more GPUs",
            )
        return Resources(gpus_per_node=gpus, walltime=self.walltime)


class LocalExecutor:
    """Runs jobs on this machine."""

    name = "local"
    settings_class = LocalSettings

    def __init__(self, settings: LocalSettings, context: Context) -> None:
        self._settings = settings
        self._context = context

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close nothing: the jobs have processes of their own."""

    def render(self, job: JobSpec) -> Sequence[Artifact]:
        """The job's files, and the commands that its process runs."""
        artifacts = [Artifact(name=name, text=text) for name, text in job.files.items()]
        commands = {"command": (job.command, job.environment)}
        commands |= {
            f"companion {one.name}": (one.command, one.environment) for one in job.companions
        }
        for name, (argv, environment) in commands.items():
            lines = [f"cd {shlex.quote(str(job.folder))}", *_assignments(environment)]
            lines += [job.before.rstrip()] if job.before else []
            artifacts.append(Artifact(name=name, text="\n".join([*lines, shlex.join(argv), ""])))
        return artifacts

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Start the job's process. Raises JobError, and StoreError for a disk that is full."""
        return await asyncio.to_thread(self._submit, job, secrets)

    async def find(self, job: JobSpec) -> Handle | None:
        """From what the job's process wrote when it began."""
        folder = Path(job.folder)
        begun = await asyncio.to_thread(read_begun, folder)
        return None if begun is None else self._handle(folder, begun.supervisor, host=begun.host)

    async def statuses(self, handles: Sequence[Handle]) -> Sequence[JobStatus]:
        """Read from the process table and the jobs' folders."""
        return await asyncio.to_thread(lambda: [_status(handle) for handle in handles])

    async def logs(self, handle: Handle, *, follow: bool) -> AsyncIterator[str]:
        """The content of the job's log; with `follow`, what is appended until it has ended."""

        async def has_ended() -> bool:
            return (await self.statuses([handle]))[0].state.ended

        path = Path(handle.folder) / LOG
        async for piece in read_log(path, follow=follow, has_ended=has_ended):
            yield piece

    async def fetch(self, handle: Handle, into: Path) -> Path:
        """The job's own folder."""
        del into
        return Path(handle.folder)

    async def cancel(self, handle: Handle) -> None:
        """End the job with all its processes and servers, however they were started. Idempotent."""
        folder, supervisor = Path(handle.folder), _identity(handle)
        _require_here(handle)
        if is_alive(supervisor):
            with suppress(OSError):  # a full disk: it is interrupted instead of cancelled
                (folder / CANCEL).touch()
            await ProcessTree(supervisor).stop(grace=self._settings.kill_grace + _BEGIN)
        commands = read_processes(folder, supervisor=supervisor)
        for command in commands:
            await ProcessTree(command).stop(grace=self._settings.kill_grace)
        for status in await asyncio.to_thread(list_servers, self._context.layout):
            if status.record.starter in commands and not status.record.detached:
                with suppress(UnknownNameError):  # its reaper was faster
                    await stop_server(status.record.name, layout=self._context.layout)
        if _status(handle).state is JobState.INTERRUPTED:
            end = End(supervisor=supervisor, state=JobState.CANCELLED)
            write_whole(folder / END, msgspec.json.encode(end), private=True)

    def check(self, job: JobSpec) -> None:
        """Raise JobError for a program that cannot be run, and GPUs that this machine lacks."""
        _require_program(job)
        _require_gpus(job)

    def _submit(self, job: JobSpec, secrets: Mapping[str, str]) -> Handle:
        self.check(job)
        folder = Path(job.folder)
        is_new = not folder.exists()
        try:
            make_private(folder)
            with FileLock(folder / _LOCK, mode=0o600, timeout=_BEGIN):
                _require_ended(folder)
                return self._start(job, folder, secrets)
        except BaseException as error:
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise worded(error) from error
            raise

    def _start(self, job: JobSpec, folder: Path, secrets: Mapping[str, str]) -> Handle:
        for name, text in job.files.items():
            write_whole(folder / name, text.encode(), private=True)
        described = LocalJob(
            id=job.id,
            command=LocalCommand(name="command", argv=job.command, environment=job.environment),
            companions=tuple(
                LocalCommand(
                    name=one.name, argv=_fill_in(one.command, node), environment=one.environment
                )
                for one, node in _nodes(job)
            ),
            before=job.before,
            walltime=job.resources.walltime,
            kill_grace=self._settings.kill_grace,
        )
        write_whole(folder / JOB, msgspec.json.format(msgspec.json.encode(described)), private=True)
        (folder / CANCEL).unlink(missing_ok=True)
        log = open_private(folder / LOG, os.O_WRONLY | os.O_APPEND)
        with os.fdopen(log, "ab") as output:
            process = subprocess.Popen(
                (sys.executable, "-P", "-m", "enginehouse.jobs.local_process", str(folder)),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        assert process.stdin is not None
        try:
            identity = identify(process.pid)
            process.stdin.write(msgspec.json.encode(dict(secrets)))  # it waits for this
            process.stdin.close()
            _await_begin(process, folder, identity)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = 0  # it outlives us: Popen is not to warn that it still runs
        assert identity is not None
        return self._handle(folder, identity, host=socket.gethostname())

    def _handle(self, folder: Path, supervisor: ProcessIdentity, *, host: str) -> Handle:
        reference = {
            "host": host,
            "pid": str(supervisor.pid),
            "started": repr(supervisor.started),
            "boot": supervisor.boot,
        }
        return Handle(executor=self.name, folder=str(folder), reference=reference)


def _await_begin(
    process: subprocess.Popen[bytes], folder: Path, identity: ProcessIdentity | None
) -> None:
    """Wait until the job's commands run. Raises JobError with what the process said."""
    deadline = time.monotonic() + _BEGIN
    while identity is None or not read_processes(folder, supervisor=identity):
        if (code := process.poll()) is not None or time.monotonic() > deadline:
            if identity is not None and read_end(folder, supervisor=identity) is not None:
                return  # it has ended already
            raise JobError(
                "the job's process did not start",
                why=f"it ended with exit code {code}" if code is not None else "it does not answer",
                fix="see its log for the reason",
                log=folder / LOG,
                kind="not_begun",
            )
        time.sleep(0.01)


def _status(handle: Handle) -> JobStatus:
    folder, supervisor = Path(handle.folder), _identity(handle)
    host = handle.reference["host"]
    is_here = host == socket.gethostname()
    if is_here and is_alive(supervisor):  # even if it has written its end: something still runs
        return JobStatus(state=JobState.RUNNING)
    if (end := read_end(folder, supervisor=supervisor)) is not None:
        return JobStatus(state=end.state, reason=end.reason, exit_code=end.exit_code)
    if not is_here:
        return JobStatus(state=JobState.UNKNOWN, reason=f"it was started on {host}")
    if any(is_alive(command) for command in read_processes(folder, supervisor=supervisor)):
        return JobStatus(state=JobState.RUNNING, reason="its process was killed; it is being ended")
    if not folder.exists():
        return JobStatus(state=JobState.UNKNOWN, reason="its folder is gone")
    restarted = this_process().boot != supervisor.boot
    gone = "its process is gone: it was killed, or its disk was full"
    reason = "the machine was restarted" if restarted else gone
    return JobStatus(state=JobState.INTERRUPTED, reason=reason)


def _identity(handle: Handle) -> ProcessIdentity:
    reference = handle.reference
    return ProcessIdentity(
        pid=int(reference["pid"]), started=float(reference["started"]), boot=reference["boot"]
    )


def _require_here(handle: Handle) -> None:
    host = handle.reference["host"]
    if host != socket.gethostname():
        raise JobError(
            f"the job runs on {host}, and this machine is {socket.gethostname()}",
            fix=f"repeat the command on {host}",
            kind="other_machine",
        )


def _require_program(job: JobSpec) -> None:
    """Raise JobError for a command that cannot be run."""
    path = job.environment.values.get("PATH", os.environ.get("PATH"))
    for argv in (job.command, *(one.command for one in job.companions)):
        if not job.before and shutil.which(argv[0], path=path) is None:
            raise JobError(
                f"cannot run {argv[0]}",
                why="it was not found, or is not executable",
                fix="`execution.command` says how Enginehouse is started",
                kind="no_program",
            )


def _require_gpus(job: JobSpec) -> None:
    """Raise JobError if the job needs more GPUs than there are.

    One GPU may be replaced by the CPU, and its engine is then one that runs on it.
    """
    needed = job.resources.gpus_per_node * job.resources.nodes
    if needed > 1 and needed > (there := len(read_gpus())):
        raise JobError(
            f"the job needs {needed} GPUs, but this machine has {there or 'none'}",
            why="it needs tensor_parallel_size x pipeline_parallel_size x data_parallel_size GPUs",
            fix="set them (-o deployment.tensor_parallel_size=1 …), or choose another executor",
            kind="gpus",
        )


def _require_ended(folder: Path) -> None:
    """Raise JobError if a job of this folder still runs."""
    if (begun := read_begun(folder)) is None:
        return
    is_here = begun.host == socket.gethostname()
    if not is_here and read_end(folder, supervisor=begun.supervisor) is None:
        raise JobError(
            f"the job in {folder} was started on {begun.host}, and may still run there",
            fix=f"repeat the command on {begun.host}",
            kind="other_machine",
        )
    if is_here and any(map(is_alive, (begun.supervisor, *begun.commands))):
        raise still_running(f"the job in {folder} is still running (pid {begun.supervisor.pid})")


def _nodes(job: JobSpec) -> Iterator[tuple[Companion, int]]:
    """Each process of each companion, with the number of its node: all are this machine."""
    node = job.resources.nodes
    for companion in job.companions:
        for _ in range(companion.nodes):
            yield companion, node
            node += 1


def _fill_in(words: Sequence[str], node: int) -> tuple[str, ...]:
    return tuple(w.replace("{node}", str(node)).replace("{head}", "127.0.0.1") for w in words)


def _assignments(environment: Environment) -> Iterator[str]:
    """The environment in lines of shell, secrets without their values."""
    for name, value in environment.values.items():
        yield f"export {name}={shlex.quote(value)}"
    for name, source in environment.from_machine.items():
        yield f'export {name}="${source}"'
    for name in sorted(environment.secrets):
        yield f"export {name}=  # a secret, given to the process on its standard input"
