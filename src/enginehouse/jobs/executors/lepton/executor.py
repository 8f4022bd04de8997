"""Jobs on Lepton: a batch job that evaluates, and an endpoint that answers it.

The endpoint is created first, and the job waits until it is ready. It is deleted when the job has
been seen to have ended, by `statuses` or by `cancel`; one that nobody asks about gives its GPUs
back after its auto_scaler's `no_traffic_timeout`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shlex
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Self

from enginehouse.core.errors import JobError
from enginehouse.jobs.base import Artifact, Handle, JobSpec, JobState, JobStatus
from enginehouse.jobs.executors.base import still_running
from enginehouse.jobs.executors.lepton.endpoint import ADDRESS, DEFAULT_STORAGE, variables
from enginehouse.jobs.executors.lepton.settings import LeptonSettings
from enginehouse.jobs.executors.lepton.workspace import Workspace, read_credentials
from enginehouse.runtime.context import Context

_PREFIX = "enginehouse-"
_POLL = 0.5
_ADDRESS_KNOWN = 120.0  # seconds until a new endpoint has an address
_NO_IMAGE = "(missing: execution.image)"
_KEPT = 7 * 24 * 3600  # seconds for which Lepton keeps a job that has ended
_STATES = {
    "Running": JobState.RUNNING,
    "Completed": JobState.COMPLETE,
    "Failed": JobState.FAILED,
    "Stopped": JobState.CANCELLED,
    "Deleted": JobState.CANCELLED,
    "Stopping": JobState.RUNNING,
    "Terminating": JobState.RUNNING,
    "Deleting": JobState.RUNNING,
    "UNK": JobState.UNKNOWN,
}  # all others come before Running
_WAIT = """\
import os, sys, time, urllib.error, urllib.request
address, seconds, variable = sys.argv[1], float(sys.argv[2]), sys.argv[3]
headers = {"Authorization": "Bearer " + os.environ[variable]} if variable in os.environ else {}
deadline, problem = time.monotonic() + seconds, "it does not answer"
while time.monotonic() < deadline:
    try:
        request = urllib.request.Request(address + "/health", headers=headers)
        urllib.request.urlopen(request, timeout=10).close()
        sys.exit(0)
    except urllib.error.HTTPError as error:
        problem = f"it answers with {error.code}"
        if error.code in (401, 403):
            break
    except OSError as error:
        problem = str(error)
    time.sleep(2)
sys.exit(f"the endpoint {address} is not ready after {seconds:.0f} s: {problem}")
"""


class LeptonExecutor:
    """Runs jobs in a workspace, as its user may."""

    name = "lepton"
    settings_class = LeptonSettings

    def __init__(self, settings: LeptonSettings, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._connection: Workspace | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the connection; the jobs go on."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.__aexit__(None, None, None)

    def render(self, job: JobSpec) -> Sequence[Artifact]:
        """What is sent, as JSON: the endpoint and the job. Node groups are still by name."""
        artifacts = [Artifact(name="job.sh", text=self._script(job, address=ADDRESS))]
        if (endpoint := self._endpoint(job, groups={})) is not None:
            artifacts.append(Artifact(name="endpoint.json", text=_json(endpoint)))
        described = self._job(job, address=ADDRESS, groups={})
        described["spec"]["container"]["command"] = ["/bin/sh", "-c", "(job.sh)"]
        return [*artifacts, Artifact(name="job.json", text=_json(described))]

    def check(self, job: JobSpec) -> None:
        """Raise JobError for a job without an image, and for one with further nodes."""
        if self._settings.image is None:
            raise JobError(
                "jobs on Lepton need an image",
                fix="execution.image names one with Enginehouse in it",
                kind="no_image",
            )
        if job.companions:
            raise JobError(
                "a job on Lepton runs on one node",
                why=f"this one needs others for: {', '.join(one.name for one in job.companions)}",
                fix="use an endpoint with several replicas (deployment.lepton_config.max_replicas)",
                kind="no_companions",
            )

    async def submit(self, job: JobSpec, *, secrets: Mapping[str, str]) -> Handle:
        """Create the secrets, the endpoint and the job; blocks until the endpoint has an address.

        An ended job of the same name is replaced.
        """
        self.check(job)
        workspace = self._workspace()
        await self._remove_ended(workspace, _name(job))
        groups = await self._node_groups(workspace)
        reference = {"workspace": workspace.credentials.workspace, "name": _name(job)}
        if self._settings.endpoint is not None:
            reference["endpoint"] = _endpoint_name(job, self._settings)
        reference["secrets"] = ",".join(sorted(_secrets(job).values()))
        try:
            for name, stored in _secrets(job).items():
                await workspace.delete(f"/usersecrets/{stored}")
                item = [{"name": stored, "value": secrets[name]}]
                await workspace.create("/usersecrets", item)
            address = await self._create_endpoint(workspace, job, groups)
            described = self._job(job, address=address, groups=groups)
            created = await workspace.create("/jobs", described)
        except BaseException:
            await asyncio.shield(_clean(workspace, reference))
            raise
        reference["id"] = created["metadata"]["id"]
        return Handle(executor=self.name, folder=str(job.folder), reference=reference)

    async def statuses(self, handles: Sequence[Handle]) -> Sequence[JobStatus]:
        """One list, of the jobs. What belongs to those that have ended is deleted."""
        workspace = self._workspace()
        listed = await workspace.jobs(name=_PREFIX)
        jobs = {one["metadata"]["id"]: one for one in listed}
        statuses = []
        for handle in handles:
            if handle.reference["workspace"] != workspace.credentials.workspace:
                reason = f"it is in the workspace {handle.reference['workspace']}"
                statuses.append(JobStatus(state=JobState.UNKNOWN, reason=reason))
                continue
            statuses.append(status := _status(jobs.get(handle.reference["id"])))
            if status.state.ended:
                await _clean(workspace, handle.reference)
        return statuses

    async def logs(self, handle: Handle, *, follow: bool) -> AsyncIterator[str]:
        """The output of the job's replica, which Lepton tells from its beginning each time."""
        workspace = self._workspace_of(handle)
        path, told = f"/jobs/{handle.reference['id']}/replicas", 0
        while True:
            status = _status(await self._read(workspace, handle))  # before: nothing is lost
            replicas = await workspace.read(path, {"job_query_mode": "alive_and_archive"}) or []
            text = ""
            for replica in replicas:
                text += await workspace.log(f"{path}/{replica['metadata']['id']}/log")
            if len(text) > told:
                yield text[told:]
                told = len(text)
            if not follow or status.state.ended:
                return
            await asyncio.sleep(_POLL)

    async def fetch(self, handle: Handle, into: Path) -> Path:
        """The folder where the storage is mounted here; nothing is copied."""
        del into
        here, folder = self._settings.mounted_here, PurePosixPath(handle.folder)
        mount = self._settings.lepton_platform.tasks.mounts[0]
        if here is None:
            raise JobError(
                f"the job's folder is on Lepton's storage: {handle.folder} in the job, in "
                f"{mount['path']} of {mount.get('from', DEFAULT_STORAGE)}",
                why="Lepton's API does not offer downloads",
                fix="mount the storage here and give execution.mounted_here, or copy the folder "
                "with `lep`",
                kind="not_mounted",
            )
        return Path(here) / folder.relative_to(mount["mount_path"])

    async def cancel(self, handle: Handle) -> None:
        """Stop the job, wait until it has stopped, and delete the endpoint. Idempotent."""
        workspace = self._workspace_of(handle)
        stopped = {"spec": {"stopped": True}}
        while not _status(await self._read(workspace, handle)).state.ended:
            await workspace.change(f"/jobs/{handle.reference['id']}", stopped)
            await asyncio.sleep(_POLL)
        await _clean(workspace, handle.reference)

    def _workspace(self) -> Workspace:
        if self._connection is None:
            self._connection = Workspace(read_credentials())
        return self._connection

    def _workspace_of(self, handle: Handle) -> Workspace:
        workspace, name = self._workspace(), handle.reference["workspace"]
        if name != workspace.credentials.workspace:
            raise JobError(
                f"the job is in the workspace {name}",
                why=f"the current one is {workspace.credentials.workspace}",
                fix=f"`lep workspace login -i {name}`, or set LEPTON_WORKSPACE_ID",
                kind="other_workspace",
            )
        return workspace

    async def _read(self, workspace: Workspace, handle: Handle) -> Any:
        query = {"job_query_mode": "alive_and_archive"}
        return await workspace.read(f"/jobs/{handle.reference['id']}", query)

    async def _remove_ended(self, workspace: Workspace, name: str) -> None:
        for old in await workspace.jobs(name=name):
            state = _status(old).state
            if not state.ended:
                raise still_running(f"the job {name} is still running")
            await workspace.delete(f"/jobs/{old['metadata']['id']}")

    async def _node_groups(self, workspace: Workspace) -> dict[str, str]:
        """The ids of the settings' node groups by name. Raises JobError for an unknown one."""
        platform = self._settings.lepton_platform
        wanted = {platform.tasks.node_group, platform.deployment.node_group} - {None}
        if not wanted:
            return {}
        listed = await workspace.read("/dedicated-node-groups") or []
        known = {one["metadata"]["name"]: one["metadata"]["id"] for one in listed}
        ids = {**{i: i for i in known.values()}, **known}
        for name in sorted(str(one) for one in wanted):
            if name not in ids:
                raise JobError(
                    f"there is no node group {name} in the workspace",
                    why=f"there are: {', '.join(sorted(known)) or 'none'}",
                    fix="`lep node list` shows them; lepton_platform.*.node_group names one",
                    kind="unknown_node_group",
                )
        return ids

    async def _create_endpoint(
        self, workspace: Workspace, job: JobSpec, groups: Mapping[str, str]
    ) -> str:
        """Create the endpoint, if there is one; gives its address."""
        endpoint = self._endpoint(job, groups=groups)
        if endpoint is None:
            return ""
        path = f"/deployments/{endpoint['metadata']['id']}"
        await _remove(workspace, path)
        await workspace.create("/deployments", endpoint)
        with suppress(TimeoutError):
            async with asyncio.timeout(_ADDRESS_KNOWN):
                while True:
                    created = await workspace.read(path) or {}
                    status = created.get("status") or {}
                    if address := (status.get("endpoint") or {}).get("external_endpoint"):
                        return str(address).rstrip("/")
                    await asyncio.sleep(_POLL)
        raise JobError(
            f"the endpoint got no address within {_ADDRESS_KNOWN:.0f} s: {path}",
            why="Lepton assigns one when it accepts the endpoint",
            fix="check with `lep endpoint status` whether others work",
            kind="no_address",
        )

    def _endpoint(self, job: JobSpec, *, groups: Mapping[str, str]) -> dict[str, Any] | None:
        """A LeptonDeployment."""
        if self._settings.endpoint is None:
            return None
        spec = json.loads(json.dumps(dict(self._settings.endpoint)))
        if (group := self._settings.lepton_platform.deployment.node_group) is not None:
            affinity = {"allowed_dedicated_node_groups": [groups.get(group, group)]}
            spec.setdefault("resource_requirement", {})["affinity"] = affinity
        name = _endpoint_name(job, self._settings)
        return {"metadata": {"id": name, "name": name, "visibility": "private"}, "spec": spec}

    def _job(self, job: JobSpec, *, address: str, groups: Mapping[str, str]) -> dict[str, Any]:
        """A LeptonJob."""
        settings, tasks = self._settings, self._settings.lepton_platform.tasks
        references = {
            name: {"value_from": {"secret_name_ref": stored}}
            for name, stored in _secrets(job).items()
        }
        spec: dict[str, Any] = {
            "resource_shape": settings.evaluation_tasks.resource_shape,
            "container": {
                "image": settings.image or _NO_IMAGE,
                "command": ["/bin/sh", "-c", self._script(job, address=address)],
            },
            "envs": variables({**tasks.env_vars, **references}),
            "mounts": [{"from": DEFAULT_STORAGE, **mount} for mount in tasks.mounts],
            "image_pull_secrets": list(tasks.image_pull_secrets),
            "completions": 1,
            "parallelism": 1,
            "max_failure_retry": 0,
            "ttl_seconds_after_finished": _KEPT,
        }
        if tasks.node_group is not None:
            group = groups.get(tasks.node_group, tasks.node_group)
            spec["affinity"] = {"allowed_dedicated_node_groups": [group]}
        metadata = {"name": _name(job), "visibility": "private"}
        return {"metadata": metadata, "spec": spec}

    def _script(self, job: JobSpec, *, address: str) -> str:
        """What the job runs: its files, its environment, the wait, and the command."""
        folder = shlex.quote(str(job.folder))
        lines = ["set -e", f"mkdir -p {folder}", f"cd {folder}"]
        for path, text in job.files.items():
            content = text.replace(ADDRESS, address) if address else text
            if (parent := str(PurePosixPath(path).parent)) != ".":
                lines.append(f"mkdir -p {shlex.quote(parent)}")
            encoded = base64.b64encode(content.encode()).decode()
            lines.append(f"echo {encoded} | base64 -d > {shlex.quote(path)}")
        lines += [*_exports(job), *job.before.rstrip().splitlines()]
        if self._settings.endpoint is not None:
            seconds = str(self._settings.evaluation_tasks.timeout)
            words = ("python3", "-c", _WAIT, address, seconds, self._settings.server_key or "")
            lines.append(shlex.join(words))
        return "\n".join([*lines, "set +e", f"exec {shlex.join(job.command)}", ""])


async def _clean(workspace: Workspace, reference: Mapping[str, str]) -> None:
    """Delete what belongs to a job beside it."""
    if endpoint := reference.get("endpoint"):
        await workspace.delete(f"/deployments/{endpoint}")
    for name in filter(None, reference["secrets"].split(",")):
        await workspace.delete(f"/usersecrets/{name}")


async def _remove(workspace: Workspace, path: str) -> None:
    """Delete something and wait until it is gone."""
    while await workspace.read(path) is not None:
        await workspace.delete(path)
        await asyncio.sleep(_POLL)


def _status(job: Mapping[str, Any] | None) -> JobStatus:
    """The state of a job, from a LeptonJob."""
    if job is None:
        return JobStatus(state=JobState.CANCELLED, reason="it was deleted")
    status = job.get("status") or {}
    word = str(status.get("state") or "")
    if word == "Archived":
        ends = {"succeeded": JobState.COMPLETE, "failed": JobState.FAILED}
        state = next((ends[one] for one in ends if status.get(one)), JobState.CANCELLED)
        return JobStatus(state=state, reason=word)
    state = _STATES.get(word, JobState.PENDING)
    plain = state in (JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED)
    known = word in ("Running", "") or plain
    return JobStatus(
        state=state,
        reason=None if known else word,
        exit_code=0 if state is JobState.COMPLETE else None,
    )


def _name(job: JobSpec) -> str:
    return f"{_PREFIX}{job.id}"


def _endpoint_name(job: JobSpec, settings: LeptonSettings) -> str:
    return f"{settings.endpoint_name[:19].rstrip('-')}-{job.id}"  # at most 36 characters


def _secrets(job: JobSpec) -> dict[str, str]:
    """The names of a job's secrets in the workspace, by that of the variable."""
    return {
        name: f"{_name(job)}-{name.lower().replace('_', '-')}"
        for name in sorted(job.environment.secrets)
    }


def _exports(job: JobSpec) -> Iterator[str]:
    for name, value in job.environment.values.items():
        yield f"export {name}={shlex.quote(value)}"
    for name, source in job.environment.from_machine.items():
        yield f'export {name}="${source}"'


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
