"""The faked cluster: what is stored, its Job controller and its node."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from enginehouse.testing.fake_kubernetes.pod_process import PodProcess

_TICK = 0.02
_INDEX = "batch.kubernetes.io/job-completion-index"
_STATUS, _OUTPUT, _ERROR_OUTPUT = 3, 1, 2
_PLURALS = {"jobs": "Job", "pods": "Pod", "configmaps": "ConfigMap"} | {
    "secrets": "Secret",
    "services": "Service",
}

Item = dict[str, Any]


class FakeKubernetes:
    """One namespace of a cluster whose single node is this machine.

    `refusals` maps a plural to the (status, message) with which its creation is refused. `requests`
    has the method and path of each request. While `unschedulable` is a text, no pod is started, and
    it is why.
    """

    def __init__(self, folder: Path, *, namespace: str = "default") -> None:
        self.namespace = namespace
        self.token = uuid.uuid4().hex
        self.address = ""
        self.refusals: dict[str, tuple[int, str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.unschedulable: str | None = None
        self.items: dict[str, dict[str, Item]] = {plural: {} for plural in _PLURALS}
        self._folder = folder
        self._processes: dict[str, PodProcess] = {}
        self._deaths: dict[str, asyncio.Task[None]] = {}
        self._numbers = itertools.count()

    def kubeconfig(self) -> dict[str, Any]:
        """A kubeconfig that leads here."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.address}}],
            "users": [{"name": "me", "user": {"token": self.token}}],
            "contexts": [
                {
                    "name": "fake",
                    "context": {"cluster": "fake", "user": "me", "namespace": self.namespace},
                }
            ],
        }

    def disrupt(self, pod: str) -> None:
        """Let a pod be preempted: its process is killed, and the Job starts another one."""
        item = self.items["pods"][pod]
        item["status"].setdefault("conditions", []).append(
            {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
        )
        self._end(pod)

    async def close(self) -> None:
        """End every pod."""
        await asyncio.gather(*self._deaths.values())
        for process in self._processes.values():
            await process.stop()

    async def work(self) -> None:
        """Be the node and the Job controller, until cancelled."""
        while True:
            for pod in list(self.items["pods"].values()):
                self._sync_pod(pod)
            for job in list(self.items["jobs"].values()):
                self._sync_job(job)
            await asyncio.sleep(_TICK)

    def _sync_pod(self, pod: Item) -> None:
        name = pod["metadata"]["name"]
        process, status = self._processes[name], pod["status"]
        if name in self._deaths:
            if self._deaths[name].done():
                self._finish(pod)
            return
        if not process.started:
            if self.unschedulable is not None:
                status["conditions"] = [
                    {"type": "PodScheduled", "status": "False"}
                    | {"reason": "Unschedulable", "message": self.unschedulable}
                ]
                return
            data = {"config_maps": self.items["configmaps"], "secrets": self.items["secrets"]}
            if (missing := process.missing(**data)) is not None:
                waiting = {"reason": "CreateContainerConfigError", "message": missing}
                status["containerStatuses"] = [{"state": {"waiting": waiting}}]
                return
            process.start(**data)
            status["phase"] = "Running"
            status["containerStatuses"] = [{"state": {"running": {}}}]
        elif process.exit_code() is not None:
            self._end(name)  # what the command left behind goes with its container

    def _finish(self, pod: Item) -> None:
        name = pod["metadata"]["name"]
        code = self._processes[name].exit_code()
        if "deletionTimestamp" in pod["metadata"]:
            self._processes.pop(name).remove()
            del self._deaths[name], self.items["pods"][name]
            return
        pod["status"]["phase"] = "Failed" if code else "Succeeded"
        end = {"exitCode": code, "reason": "Error" if code else "Completed"}
        pod["status"]["containerStatuses"] = [{"state": {"terminated": end}}]

    def _end(self, name: str) -> None:
        if name not in self._deaths:
            self._deaths[name] = asyncio.create_task(self._processes[name].stop())

    def _delete_pod(self, pod: Item) -> None:
        pod["metadata"].setdefault("deletionTimestamp", _now())
        self._end(pod["metadata"]["name"])

    def _sync_job(self, job: Item) -> None:
        uid = job["metadata"]["uid"]
        pods = [pod for pod in self.items["pods"].values() if uid in _owners(pod)]
        if "deletionTimestamp" in job["metadata"]:
            for pod in pods:
                self._delete_pod(pod)
            if not pods:
                self._delete_job(job)
            return
        if "conditions" in job["status"]:
            return
        if (verdict := _verdict(job, pods)) is not None:
            self._conclude(job, pods, verdict)
            return
        alive = {_index(pod) for pod in pods if not _is_disrupted(pod)}
        for index in map(str, range(job["spec"].get("completions", 1))):
            if index not in alive:
                self._create_pod(job, index)

    def _conclude(self, job: Item, pods: list[Item], verdict: Item) -> None:
        """End a Job's pods; once they are gone, it has its condition."""
        left = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
        for pod in left:
            self._delete_pod(pod)
        if not left:
            job["status"]["conditions"] = [verdict]

    def _create_pod(self, job: Item, index: str) -> None:
        template = job["spec"]["template"]
        name = f"{job['metadata']['name']}-{index}-{next(self._numbers):05d}"
        metadata = json.loads(json.dumps(template["metadata"]))
        if job["spec"].get("completionMode") == "Indexed":
            metadata["annotations"] = {**metadata.get("annotations", {}), _INDEX: index}
        owner = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
        pod = {"metadata": {**metadata, "name": name, "ownerReferences": [owner]}}
        self._store("pods", pod | {"spec": template["spec"]})
        job["status"].setdefault("startTime", _now())

    def _delete_job(self, job: Item) -> None:
        uid = job["metadata"]["uid"]
        del self.items["jobs"][job["metadata"]["name"]]
        for plural in ("configmaps", "secrets", "services"):
            for name, item in list(self.items[plural].items()):
                if uid in _owners(item):
                    del self.items[plural][name]

    def _store(self, plural: str, item: Item) -> Item:
        metadata = item["metadata"]
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        metadata["namespace"] = self.namespace
        name = metadata["name"]
        self.items[plural][name] = item
        if plural == "jobs":
            item["status"] = {}
            item["deadline"] = time.monotonic() + item["spec"].get("activeDeadlineSeconds", 1e9)
        if plural == "pods":
            item["status"] = {"phase": "Pending"}
            self._processes[name] = PodProcess(item, self._folder / name)
        return item

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request of the API."""
        self.requests.append((request.method, request.path))
        plural, name = request.match_info["plural"], request.match_info.get("name", "")
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _refusal(401, "Unauthorized")
        if (namespace := request.match_info["namespace"]) != self.namespace:
            return _refusal(404, f'namespaces "{namespace}" not found')
        if request.method == "POST":
            return await self._create(plural, await request.json())
        if not name:
            selector = request.query.get("labelSelector", "")
            found = [one for one in self.items[plural].values() if _selected(one, selector)]
            return web.json_response({"kind": f"{_PLURALS[plural]}List", "items": found})
        if name not in self.items[plural]:
            return _refusal(404, f'{plural} "{name}" not found')
        return await self._handle_one(request, plural, name)

    async def _handle_one(self, request: web.Request, plural: str, name: str) -> web.StreamResponse:
        item, part = self.items[plural][name], request.match_info.get("part")
        if request.method == "DELETE":
            return self._delete(plural, item, await request.json())
        if part == "log":
            return await self._log(request, name)
        if part == "exec":
            return await self._exec(request)
        return web.json_response(item)

    async def _create(self, plural: str, item: Item) -> web.Response:
        if plural in self.refusals:
            return _refusal(*self.refusals[plural])
        name = item["metadata"]["name"]
        if name in self.items[plural]:
            return _refusal(409, f'{plural} "{name}" already exists')
        return web.json_response(self._store(plural, item), status=201)

    def _delete(self, plural: str, item: Item, options: Mapping[str, Any]) -> web.Response:
        wanted = options.get("preconditions", {}).get("uid")
        if wanted not in (None, item["metadata"]["uid"]):
            return _refusal(409, "the UID in the precondition does not match")
        if plural == "pods":
            self._delete_pod(item)
        else:
            item["metadata"].setdefault("deletionTimestamp", _now())
        return web.json_response(item)

    async def _log(self, request: web.Request, name: str) -> web.StreamResponse:
        process = self._processes[name]
        if not process.started:
            return _refusal(400, f'container "job" in pod "{name}" is waiting to start')
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        async for content in process.output(follow=request.query.get("follow") == "true"):
            await response.write(content)
        return response

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        await run_command(socket, request.query.getall("command"))
        return socket


async def run_command(socket: web.WebSocketResponse, command: list[str]) -> None:
    """Run a command and send its output as the channels of v4.channel.k8s.io, then its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    await socket.send_bytes(bytes([_OUTPUT]))  # empty frames open the channels, as a kubelet's do
    while content := await process.stdout.read(1 << 16):
        await socket.send_bytes(bytes([_OUTPUT]) + content)
    if errors := await process.stderr.read():
        await socket.send_bytes(bytes([_ERROR_OUTPUT]) + errors)
    code = await process.wait()
    end: dict[str, Any] = {"metadata": {}, "status": "Success"}
    if code:
        end = {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: exit code {code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        }
    await socket.send_bytes(bytes([_STATUS]) + json.dumps(end).encode())
    await socket.close()


@asynccontextmanager
async def running_fake_kubernetes(folder: Path, **options: Any) -> AsyncIterator[FakeKubernetes]:
    """A faked cluster, answering on loopback while the block lasts; `folder` is its node's disk."""
    cluster = FakeKubernetes(folder, **options)
    application = web.Application()
    for root in ("/api/v1", "/apis/batch/v1"):
        path = root + "/namespaces/{namespace}/{plural}"
        for suffix in ("", "/{name}", "/{name}/{part}"):
            application.router.add_route("*", path + suffix, cluster.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        cluster.address = f"http://{host}:{port}"
        work = asyncio.create_task(cluster.work())
        try:
            yield cluster
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await cluster.close()
    finally:
        await runner.cleanup()


def _verdict(job: Item, pods: list[Item]) -> Item | None:
    """The condition with which a Job ends now; None while it goes on."""
    failed = [pod for pod in pods if pod["status"]["phase"] == "Failed"]
    succeeded = {_index(pod) for pod in pods if pod["status"]["phase"] == "Succeeded"}
    spec = job["spec"]
    if time.monotonic() > job["deadline"]:
        return _condition("Failed", "DeadlineExceeded")
    enough = {rule["succeededIndexes"] for rule in spec.get("successPolicy", {}).get("rules", [])}
    if enough & succeeded:
        return _condition("Complete", "SuccessPolicy")
    if any(not _is_disrupted(pod) for pod in failed):
        return _condition("Failed", "BackoffLimitExceeded")
    if len(succeeded) == spec.get("completions", 1):
        return _condition("Complete", "CompletionsReached")
    return None


def _condition(kind: str, reason: str) -> Item:
    return {"type": kind, "status": "True", "reason": reason}


def _is_disrupted(pod: Item) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "DisruptionTarget" for one in conditions)


def _index(pod: Item) -> str:
    return str(pod["metadata"].get("annotations", {}).get(_INDEX, "0"))


def _owners(item: Item) -> set[str]:
    return {one["uid"] for one in item["metadata"].get("ownerReferences", [])}


def _selected(item: Item, selector: str) -> bool:
    labels = item["metadata"].get("labels", {})
    if " in (" in selector:
        key, _, values = selector.partition(" in ")
        return labels.get(key) in values.strip("()").split(",")
    pairs = [one.split("=", 1) for one in selector.split(",") if one]
    return all(labels.get(key) == value for key, value in pairs)


def _refusal(status: int, message: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": status}
    return web.json_response(body, status=status)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
