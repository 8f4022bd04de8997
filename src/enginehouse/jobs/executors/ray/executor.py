"""Jobs of a running Ray cluster, submitted to the jobs API of its dashboard.

A job's program (`payloads/ray_job.py`) and its files travel as a package, which Ray unpacks where
it runs. So do the values of secrets: in a file with mode 600, which the first words of the
entrypoint open and remove. All else about a job is shown to everyone who can see the dashboard.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets as randomness
import shlex
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import (
    Artifact,
    Companion,
    Environment,
    Handle,
    JobSpec,
    JobState,
    JobStatus,
)
from enginehouse.jobs.executors.base import still_running
from enginehouse.jobs.executors.ray.cluster import (
    RayCluster,
    RayJob,
    Reservation,
    cluster_address,
)
from enginehouse.jobs.executors.ray.settings import RaySettings
from enginehouse.provisioning.programs import PAYLOADS
from enginehouse.runtime.context import Context

_MARKER = ".ray-job"  # in a job's folder: the job's id
_SLACK = 30.0  # seconds for Ray's own part in ending a job
_FETCH = 600.0  # seconds
_FOLLOW_AGAIN = 1.0
_NOTE = "enginehouse_job"  # the key of a job's id in the metadata of Ray's jobs
_STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.COMPLETE,
    "STOPPED": JobState.CANCELLED,
}
# The exit codes of payloads/ray_job.py, and what they mean.
_ENDS = {
    240: (JobState.INTERRUPTED, "TIMEOUT"),
    241: (JobState.FAILED, "a companion ended unexpectedly"),
    242: (JobState.INTERRUPTED, "a node was lost"),
}
# Failures that are not the job's own. A supervisor is Ray's process on the head node.
_LOST = frozenset(
    {
        "JOB_SUPERVISOR_ACTOR_DIED",
        "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE",
    }
)


class RayExecutor:
    """Runs jobs on a Ray cluster."""

    name = "ray"
    settings_class = RaySettings

    def __init__(self, settings: RaySettings, context: Context) -> None:
        del context
        self._settings = settings
        self._clusters: dict[str, RayCluster] = {}

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._clusters.clear()
        await self._stack.aclose()

    def render(self, job: JobSpec) -> Sequence[Artifact]:
        """The request to the jobs API, and the files of the package that belongs to it."""
        request = self._request(job, submission=f"enginehouse-{job.id}-…", package="gcs://…")
        described = {**self._description(job, submission=request["submission_id"]), "files": "…"}
        programs = "ray_job.py and ray_node.py, from Enginehouse"
        names = sorted({n for env in _environments(job) for n in env.secrets})
        if names:
            programs += f"\nsecrets.json, mode 600: {', '.join(names)}"
        return [
            Artifact(name="POST /api/jobs/", text=_json(request)),
            Artifact(name="package: job.json", text=_json(described)),
            *(Artifact(name=f"package: {name}", text=text) for name, text in job.files.items()),
            Artifact(name="package", text=programs + "\n"),
        ]

    def check(self, job: JobSpec) -> None:
        """Raise JobError if no usable address of a cluster is given."""
        del job
        cluster_address(self._settings.address)

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Upload the job's package, and submit it."""
        cluster = await self._cluster(cluster_address(self._settings.address))
        for other in await cluster.jobs():
            if (other.metadata or {}).get(_NOTE) == job.id and not other.ended:
                raise still_running(
                    f"job {job.id} is still running on the cluster, as {other.submission_id}"
                )
        submission = f"enginehouse-{job.id}-{randomness.token_hex(2)}"
        content = _package(
            {
                "ray_job.py": _program("ray_job.py"),
                "ray_node.py": _program("ray_node.py"),
                "job.json": json.dumps(self._description(job, submission=submission)),
                "secrets.json": json.dumps(dict(secrets)),
            }
        )
        package = await cluster.upload(f"_ray_pkg_{randomness.token_hex(8)}.zip", content)
        try:
            await cluster.submit(self._request(job, submission=submission, package=package))
        except BaseException:
            with suppress(JobError):  # it may have arrived
                await cluster.stop(submission)
            raise
        return self._handle(job, cluster, submission)

    async def find(self, job: JobSpec) -> Handle | None:
        """By the job's id, which is in the metadata of Ray's job; one that runs comes first."""
        cluster = await self._cluster(cluster_address(self._settings.address))
        own = [one for one in await cluster.jobs() if (one.metadata or {}).get(_NOTE) == job.id]
        for other in sorted(own, key=lambda one: one.ended):
            if other.submission_id:
                return self._handle(job, cluster, other.submission_id)
        return None

    async def statuses(self, handles: Sequence[Handle]) -> Sequence[JobStatus]:
        """Asked of each cluster once."""
        known: dict[tuple[str, str], JobStatus] = {}
        for address in {handle.reference["address"] for handle in handles}:
            cluster = await self._cluster(address)
            wanted = {
                h.reference["submission"] for h in handles if h.reference["address"] == address
            }
            if len(wanted) == 1:
                jobs = [job for job in [await cluster.job(*wanted)] if job]
            else:
                jobs = [job for job in await cluster.jobs() if job.submission_id in wanted]
            running = any(job.status == "RUNNING" for job in jobs)
            reservations = await cluster.reservations() if running else {}
            for job in jobs:
                name = job.submission_id or ""
                status = _status(job)
                if job.status == "RUNNING" and (group := reservations.get(name)) and group.waits:
                    reason = await _shortage(cluster, group)
                    status = JobStatus(state=JobState.PENDING, reason=reason)
                known[address, name] = status
        gone = JobStatus(state=JobState.UNKNOWN, reason="the cluster does not know it")
        return [
            known.get((handle.reference["address"], handle.reference["submission"]), gone)
            for handle in handles
        ]

    async def logs(self, handle: Handle, *, follow: bool) -> AsyncIterator[str]:
        """What the job's program has printed, which is the output of all its commands."""
        cluster, submission = await self._job(handle)
        if (job := await cluster.job(submission)) is None:
            raise JobError(
                f"the Ray cluster at {cluster.address} does not know this job",
                why="it has no log of the job, and may have been restarted",
                fix=f"its folder was {handle.folder}; submit it again with `launch resume`",
                kind="no_log",
            )
        if not follow or job.ended:
            yield await cluster.logs(submission)
            return
        length = 0
        while True:
            begin = 0  # a new connection starts again at the beginning
            async for piece in cluster.follow(submission):
                if (new := piece[max(length - begin, 0) :]) != "":
                    yield new
                begin += len(piece)
                length = max(length, begin)
            if (job := await cluster.job(submission)) is None or job.ended:
                return
            await asyncio.sleep(_FOLLOW_AGAIN)

    async def fetch(self, handle: Handle, into: Path) -> Path:
        """The job's folder if it can be read here; else a copy, which another job of Ray prints."""
        if await asyncio.to_thread(_is_here, handle):
            return Path(handle.folder)
        cluster, _ = await self._job(handle)
        submission = f"enginehouse-fetch-{randomness.token_hex(4)}"
        content = _package({"ray_fetch.py": _program("ray_fetch.py")})
        package = await cluster.upload(f"_ray_pkg_{randomness.token_hex(8)}.zip", content)
        words = (handle.folder, _MARKER, handle.reference["id"])
        await cluster.submit(
            {
                "entrypoint": shlex.join([self._settings.python, "ray_fetch.py", *words]),
                "submission_id": submission,
                "runtime_env": {"working_dir": package},
            }
        )
        try:
            ended = await cluster.ended(submission, patience=_FETCH)
            text = await cluster.logs(submission)
        except BaseException as error:
            with suppress(JobError):
                await cluster.stop(submission)
            if isinstance(error, TimeoutError):
                raise JobError(
                    f"the folder of the job was not copied within {_FETCH:.0f} s",
                    why=f"job {submission} of the Ray cluster, which copies it, has not ended",
                    fix="repeat the command when the cluster is less busy",
                    kind="not_copied",
                ) from error
            raise
        if ended is None or ended.status != "SUCCEEDED":
            raise JobError(
                f"the folder of the job was not found: {handle.folder}",
                why="no node of the cluster has it"
                if ended and ended.driver_exit_code == 1
                else f"{ended.message if ended else 'the cluster was restarted'}",
                fix="its node may be gone; results survive that in an `execution.output_dir` "
                "shared by all nodes",
                kind="no_folder",
            )
        await asyncio.to_thread(_unpack, text, into)
        return into

    async def cancel(self, handle: Handle) -> None:
        """Stop the job, and wait until it has ended. Idempotent."""
        cluster, submission = await self._job(handle)
        job = await cluster.job(submission)
        if job is None or job.ended:
            return
        await cluster.stop(submission)
        patience = self._settings.kill_grace + 2 * _SLACK
        try:
            await cluster.ended(submission, patience=patience)
        except TimeoutError as error:
            raise JobError(
                f"job {handle.reference['id']} did not end within {patience:.0f} s",
                why="Ray was asked to stop it",
                fix=f"`ray job stop {submission} --address {cluster.address}` repeats that",
                kind="not_stopped",
            ) from error

    def _handle(self, job: JobSpec, cluster: RayCluster, submission: str) -> Handle:
        reference = {"address": cluster.address, "submission": submission, "id": job.id}
        return Handle(executor=self.name, folder=str(job.folder), reference=reference)

    async def _cluster(self, address: str) -> RayCluster:
        if address not in self._clusters:
            self._clusters[address] = await self._stack.enter_async_context(RayCluster(address))
        return self._clusters[address]

    async def _job(self, handle: Handle) -> tuple[RayCluster, str]:
        reference = handle.reference
        return await self._cluster(reference["address"]), reference["submission"]

    def _request(self, job: JobSpec, *, submission: str, package: str) -> dict[str, Any]:
        python = shlex.quote(self._settings.python)
        return {
            "entrypoint": f"exec 3<secrets.json && rm -f secrets.json && exec {python} ray_job.py",
            "submission_id": submission,
            "runtime_env": {
                "working_dir": package,
                "env_vars": {
                    "RAY_JOB_STOP_WAIT_TIME_S": str(int(self._settings.kill_grace + _SLACK))
                },
            },
            "metadata": {"job_name": job.name, _NOTE: job.id},
        }

    def _description(self, job: JobSpec, *, submission: str) -> dict[str, Any]:
        """The content of job.json, which payloads/ray_job.py explains."""
        return {
            "name": submission,
            "folder": str(job.folder),
            "files": {**job.files, _MARKER: job.id},
            "resources": self._resources(job),
            "walltime": job.resources.walltime,
            "grace": self._settings.kill_grace,
            "nodes": list(_nodes(job)),
        }

    def _resources(self, job: JobSpec) -> Mapping[str, float]:
        asked = job.resources
        return {
            "CPU": asked.cpus_per_node or 1,
            **({"GPU": asked.gpus_per_node} if asked.gpus_per_node else {}),
            **({"memory": int(asked.memory_gb * 2**30)} if asked.memory_gb else {}),
            **self._settings.resources_per_node,
        }


def _nodes(job: JobSpec) -> Iterator[dict[str, Any]]:
    """The nodes of job.json, in the order of their numbers."""
    yield _node("command", job.command, job.environment, before=job.before)
    for _ in range(1, job.resources.nodes):
        yield _node("reserved", None, Environment(), before="")
    number = job.resources.nodes
    for companion in job.companions:
        for _ in range(companion.nodes):
            words = tuple(word.replace("{node}", str(number)) for word in companion.command)
            yield _node(companion.name, words, companion.environment, before=job.before)
            number += 1


def _node(
    name: str, command: Sequence[str] | None, environment: Environment, *, before: str
) -> dict[str, Any]:
    return {
        "name": name,
        "command": command,
        "before": before,
        "environment": dict(environment.values),
        "from_machine": dict(environment.from_machine),
        "secrets": sorted(environment.secrets),
    }


def _environments(job: JobSpec) -> Iterator[Environment]:
    companions: Sequence[Companion] = job.companions
    yield from (job.environment, *(companion.environment for companion in companions))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _program(name: str) -> str:
    return (PAYLOADS / name).read_text(encoding="utf-8")


def _package(files: Mapping[str, str]) -> bytes:
    """A zip file whose files only their owner may read, once Ray has unpacked it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as package:
        for name, text in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100600 << 16
            package.writestr(entry, text)
    return content.getvalue()


def _status(job: RayJob) -> JobStatus:
    code = job.driver_exit_code
    if (state := _STATES.get(job.status)) is not None:
        reason = job.message if state is JobState.PENDING else None
        return JobStatus(state=state, reason=reason, exit_code=code)
    if code in _ENDS:
        state, reason = _ENDS[code]
        return JobStatus(state=state, reason=reason)
    if code is not None:
        return JobStatus(state=JobState.FAILED, exit_code=code)
    reason = ": ".join(filter(None, (job.error_type, (job.message or "").partition("\n")[0])))
    lost = job.error_type in _LOST
    return JobStatus(state=JobState.INTERRUPTED if lost else JobState.FAILED, reason=reason)


async def _shortage(cluster: RayCluster, group: Reservation) -> str:
    """Why a job waits: what it needs, and whether any node has as much."""
    wanted = dict(group.bundles[0].unit_resources) if group.bundles else {}
    words = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    reason = f"waits for {len(group.bundles)} node(s), each with {words}"
    nodes = await cluster.nodes()
    fitting = [
        node
        for node in nodes
        if all(node.resources_total.get(name, 0) >= amount for name, amount in wanted.items())
    ]
    if nodes and len(fitting) < len(group.bundles):
        reason += f"; {len(fitting)} node(s) of the cluster have enough"
    return reason


def _is_here(handle: Handle) -> bool:
    """Whether the job's folder is one of this machine, or of a disk that it shares."""
    try:
        return (Path(handle.folder) / _MARKER).read_text() == handle.reference["id"]
    except OSError:
        return False


def _unpack(text: str, into: Path) -> None:
    """Unpack what payloads/ray_fetch.py has printed."""
    lines = text.splitlines()
    begin = lines.index("BEGIN")
    packed = base64.b64decode("".join(lines[begin + 1 : lines.index("END", begin)]))
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        archive.extractall(into, filter="data")
