"""Jobs in containers on this machine, by the docker program.

A job is one container, which Docker removes when it ends. What the job says, and how it ended, is
in its folder. The values of secrets reach the container's shell through its standard input: with
flags, or a file of them, Docker would keep them in the container's description.
"""

from __future__ import annotations

import asyncio
import re
import secrets as randomness
import shlex
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import jinja2
import msgspec

from enginehouse.core.errors import JobError
from enginehouse.core.system_errors import worded
from enginehouse.jobs.base import Artifact, Environment, Handle, JobSpec, JobState, JobStatus
from enginehouse.jobs.executors.base import still_running
from enginehouse.jobs.executors.docker.settings import DockerSettings
from enginehouse.jobs.log_file import read_log
from enginehouse.runtime.context import Context
from enginehouse.store.files import write_whole
from enginehouse.store.private import make_private

_SCRIPT, _LOG, _END = "job.sh", "log.txt", "end.txt"
_LOST = "lost"  # in end.txt until the job says how it ends
_LABEL = "enginehouse.job"
_LIVE = ("created", "running", "paused", "restarting")  # states of a container
_BEGUN = b"begun\n"
_POLL = 0.1
_BEGIN = 120.0  # seconds until a container's shell runs, once its image is here
_DAEMON = 60.0  # seconds for the daemon to answer
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=False,  # noqa: S701 - shell, where `quote` is the escape
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["quote"] = lambda text: shlex.quote(str(text))


class Container(msgspec.Struct, frozen=True, rename="pascal"):
    """A container, as `docker ps` lists it."""

    names: str
    state: str


class DockerExecutor:
    """Runs jobs in containers on this machine."""

    name = "docker"
    settings_class = DockerSettings

    def __init__(self, settings: DockerSettings, context: Context) -> None:
        del context
        self._settings = settings

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close nothing: the daemon has the containers."""

    def render(self, job: JobSpec) -> Sequence[Artifact]:
        """The job's files, the script that the container runs, and the docker command."""
        words = self._create(job, name=f"enginehouse-{job.id}-…")
        return [
            *(Artifact(name=name, text=text) for name, text in job.files.items()),
            Artifact(name=_SCRIPT, text=self._script(job)),
            Artifact(name="docker", text=f"{shlex.join(words)}\ndocker start --attach …\n"),
        ]

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Make and start the container. Returns when its shell has read the secrets."""
        _require_names(job)
        folder, name = Path(job.folder), f"enginehouse-{job.id}-{randomness.token_hex(2)}"
        for other in await _containers():
            if job.id in other.names and other.state in _LIVE:
                raise still_running(f"job {job.id} is still running, in container {other.names}")
            if job.id in other.names:  # it has ended, and Docker is about to remove it
                await _remove(other.names)
        is_new = not await asyncio.to_thread(folder.exists)
        try:
            await asyncio.to_thread(self._write, job)
            await _docker(*self._create(job, name=name)[1:], patience=None)
            await _start(name, secrets)
        except BaseException as error:
            with suppress(JobError):
                await _remove(name)
            if is_new:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise worded(error) from error
            raise
        return Handle(executor=self.name, folder=str(folder), reference={"container": name})

    async def find(self, job: JobSpec) -> Handle | None:
        """By the container's name; None once it is removed."""
        names = [one.names for one in await _containers() if job.id in one.names]
        if not names:
            return None
        reference = {"container": names[0]}
        return Handle(executor=self.name, folder=str(job.folder), reference=reference)

    async def statuses(self, handles: Sequence[Handle]) -> Sequence[JobStatus]:
        """Containers that are there run; how others ended is in the jobs' folders."""
        there = {one.names: one.state for one in await _containers()}
        return await asyncio.to_thread(lambda: [_status(handle, there) for handle in handles])

    async def logs(self, handle: Handle, *, follow: bool) -> AsyncIterator[str]:
        """The content of the job's log; with `follow`, what is appended until it has ended."""

        async def has_ended() -> bool:
            return (await self.statuses([handle]))[0].state.ended

        path = Path(handle.folder) / _LOG
        async for piece in read_log(path, follow=follow, has_ended=has_ended):
            yield piece

    async def fetch(self, handle: Handle, into: Path) -> Path:
        """The job's own folder."""
        del into
        return Path(handle.folder)

    async def cancel(self, handle: Handle) -> None:
        """Stop the container, and return when it is removed. Idempotent."""
        name = handle.reference["container"]
        state = {one.names: one.state for one in await _containers()}.get(name)
        if state is None:
            return
        if state in _LIVE:
            with suppress(OSError):  # a full disk: it is interrupted instead of cancelled
                await asyncio.to_thread(_note_cancelled, Path(handle.folder))
            grace = self._settings.kill_grace
            with suppress(JobError):  # it may end by itself meanwhile
                await _docker("stop", "--time", str(grace), name, patience=grace + _DAEMON)
        await _remove(name)

    def _create(self, job: JobSpec, *, name: str) -> tuple[str, ...]:
        settings = self._settings
        mounts = {**settings.mounts, str(job.folder): str(job.folder)}
        gpus = _gpu_flag(settings, job)
        return (
            *("docker", "create", "--interactive", "--rm", "--name", name),
            *("--label", f"{_LABEL}={job.id}"),
            *("--workdir", str(job.folder)),
            *(word for pair in mounts.items() for word in ("--volume", ":".join(pair))),
            *(("--gpus", gpus) if gpus else ()),
            *("--shm-size", settings.shm_size),
            *(("--user", settings.user) if settings.user else ()),
            *(("--memory", f"{job.resources.memory_gb}g") if job.resources.memory_gb else ()),
            *(("--cpus", str(job.resources.cpus_per_node)) if job.resources.cpus_per_node else ()),
            *settings.extra_docker_args,
            *("--entrypoint", "/bin/sh", settings.image, str(job.folder / _SCRIPT)),
        )

    def _script(self, job: JobSpec) -> str:
        names = sorted({name for one in _environments(job) for name in one.secrets})
        return _TEMPLATES.get_template("job.sh.jinja").render(
            title=" ".join(job.name.split()),
            log=job.folder / _LOG,
            end=job.folder / _END,
            lost=_LOST,
            before=job.before,
            nodes=list(_nodes(job)),
            all_secrets=[_shell_name(name) for name in names],
            walltime=job.resources.walltime,
            grace=self._settings.kill_grace,
        )

    def _write(self, job: JobSpec) -> None:
        folder = Path(job.folder)
        make_private(folder)
        for name, text in {**job.files, _SCRIPT: self._script(job), _END: f"{_LOST}\n"}.items():
            write_whole(folder / name, text.encode(), private=True)
        (folder / _LOG).touch(mode=0o600)


def _gpu_flag(settings: DockerSettings, job: JobSpec) -> str | None:
    """The value of `--gpus`; None for none."""
    if settings.gpus == "all":
        return "all"
    if isinstance(settings.gpus, tuple):
        return f'"device={",".join(settings.gpus)}"' if settings.gpus else None
    return str(job.resources.gpus_per_node) if job.resources.gpus_per_node else None


def _nodes(job: JobSpec) -> Iterator[Mapping[str, Any]]:
    """The commands of the script, the job's own first. All are in one container."""
    yield _node("command", job.command, job.environment)
    number = job.resources.nodes
    for companion in job.companions:
        for _ in range(companion.nodes):
            words = [
                word.replace("{node}", str(number)).replace("{head}", "127.0.0.1")
                for word in companion.command
            ]
            yield _node(companion.name, words, companion.environment)
            number += 1


def _node(name: str, words: Sequence[str], environment: Environment) -> Mapping[str, Any]:
    return {
        "name": name,
        "words": shlex.join(words),
        "assigned": environment.values,
        "from_machine": environment.from_machine,
        "secrets": {name: _shell_name(name) for name in sorted(environment.secrets)},
    }


def _environments(job: JobSpec) -> Iterator[Environment]:
    yield job.environment
    for companion in job.companions:
        yield companion.environment


def _shell_name(name: str) -> str:
    """The variable of the script's own shell that holds a secret; it is not exported."""
    return f"enginehouse_{name}"


def _require_names(job: JobSpec) -> None:
    """Raise JobError for a name that a shell cannot have as a variable's."""
    for environment in _environments(job):
        for name in (*environment.values, *environment.from_machine, *environment.secrets):
            if not _NAME.fullmatch(name):
                raise JobError(
                    f"{name!r} is not a valid name for a variable",
                    fix="use letters, digits and underscores",
                    kind="bad_name",
                )


def _status(handle: Handle, there: Mapping[str, str]) -> JobStatus:
    state = there.get(handle.reference["container"])
    if state == "created":
        return JobStatus(state=JobState.PENDING)
    if state in ("running", "paused"):
        return JobStatus(state=JobState.RUNNING)
    try:
        how, _, rest = (Path(handle.folder) / _END).read_text().strip().partition(" ")
    except OSError:
        return JobStatus(state=JobState.UNKNOWN, reason="its folder is gone")
    if how == "exit":
        code = int(rest)
        return JobStatus(state=JobState.FAILED if code else JobState.COMPLETE, exit_code=code)
    ends = {
        "cancelled": JobStatus(state=JobState.CANCELLED),
        "companion": JobStatus(state=JobState.FAILED, reason=f"{rest} ended unexpectedly"),
        "time": JobStatus(state=JobState.INTERRUPTED, reason="TIMEOUT"),
        "stopped": JobStatus(state=JobState.INTERRUPTED, reason="its container was stopped"),
    }
    killed = JobStatus(state=JobState.INTERRUPTED, reason="its container was killed")
    return ends.get(how, killed)


def _note_cancelled(folder: Path) -> None:
    """Say that the job is cancelled, unless it has said already how it ends."""
    if (folder / _END).read_text().strip() == _LOST:
        write_whole(folder / _END, b"cancelled\n", private=True)


async def _containers() -> Sequence[Container]:
    """The containers of all jobs on this machine."""
    words = ("ps", "--all", "--no-trunc", "--filter", f"label={_LABEL}", "--format", "{{json .}}")
    said = await _docker(*words)
    return [msgspec.json.decode(line, type=Container) for line in said.splitlines()]


async def _remove(name: str) -> None:
    """Remove a container, running or not; returns when there is none of that name."""
    with suppress(JobError):  # it is gone, or Docker is removing it
        await _docker("rm", "--force", name)
    deadline = asyncio.get_running_loop().time() + _DAEMON
    while name in {one.names for one in await _containers()}:
        if asyncio.get_running_loop().time() > deadline:
            raise JobError(
                f"Docker has not removed the container {name} within {_DAEMON:.0f} s",
                fix=f"`docker rm --force {name}` may say why",
                kind="not_removed",
            )
        await asyncio.sleep(_POLL)


async def _start(name: str, secrets: Mapping[str, str]) -> None:
    """Start a container, and hand the values of secrets to its shell."""
    process = await _run("start", "--attach", "--interactive", name)
    assert process.stdin is not None
    assert process.stdout is not None
    lines = [f"{_shell_name(name)}={shlex.quote(value)}\n" for name, value in secrets.items()]
    try:
        async with asyncio.timeout(_BEGIN):
            with suppress(ConnectionError):
                process.stdin.write("".join(lines).encode())
                await process.stdin.drain()
                process.stdin.close()
            said = b""
            while _BEGUN not in said:
                if not (piece := await process.stdout.read(1 << 12)):
                    raise _refusal(said.decode(errors="replace"))
                said += piece
    except TimeoutError as error:
        raise JobError(
            f"container {name} did not start within {_BEGIN:.0f} s",
            fix="`docker ps --all` and the daemon's log may say why",
            kind="not_begun",
        ) from error
    finally:
        with suppress(ProcessLookupError):
            process.kill()  # the container is not its child
        await process.wait()


async def _docker(*words: str, patience: float | None = _DAEMON) -> str:
    """What a docker command prints. Raises JobError if it fails."""
    process = await _run(*words, stdin=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(patience):
            out, _ = await process.communicate()
    except TimeoutError as error:
        raise JobError(
            f"docker {words[0]} did not finish within {patience:.0f} s",
            fix="check the daemon: `docker info`",
            kind="unreachable",
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = out.decode(errors="replace")
    if process.returncode:
        raise _refusal(said)
    return said


async def _run(*words: str, stdin: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            "docker",
            *words,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except FileNotFoundError as error:
        raise JobError(
            "the program docker was not found",
            fix="install Docker, or use `execution: local`, which needs none",
            kind="no_program",
        ) from error


_REFUSALS = (
    ("permission denied", "no_permission", "add your user to the group docker, or use sudo"),
    ("connect to the docker daemon", "unreachable", "start the daemon, or set DOCKER_HOST"),
    ("daemon is not running", "unreachable", "start the daemon, or set DOCKER_HOST"),
    ("pull access denied", "no_image", "check execution.image, and `docker login`"),
    ("unable to find image", "no_image", "check execution.image, and `docker login`"),
    ("manifest unknown", "no_image", "check the tag of execution.image"),
    ("select device driver", "no_gpus", "install the NVIDIA Container Toolkit"),
    ("no space left", "disk_full", "free some space: `docker system df`"),
)


def _refusal(said: str) -> JobError:
    """The error for what docker said."""
    lines = [line for line in said.strip().splitlines() if line and "--help" not in line]
    why = lines[-1] if lines else "it printed nothing"
    for words, kind, fix in _REFUSALS:
        if words in said.lower():
            return JobError("Docker did not start the job", why=why, fix=fix, kind=kind)
    return JobError("docker failed", why=why, fix="`docker info` may say more", kind="refused")
