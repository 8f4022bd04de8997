"""A Lepton workspace, faked: its API for jobs, endpoints and secrets. Jobs are processes here.

Requests must be as leptonai's models have them, which tests/jobs/executors/lepton/test_executor.py
checks with the package itself. Endpoints answer /health, and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from enginehouse.testing.fake_kubernetes.pod_process import PodProcess

WORKSPACE = "/api/v2/workspaces/fake"
_STATE_OF_CODE = {0: "Completed"}

Item = dict[str, Any]


class FakeLepton:
    """One workspace. `sent` has the body of each creation, by path; `refusals` the status of one.

    While `ready` is false, endpoints answer that they are not.
    """

    def __init__(self, folder: Path) -> None:
        self.address = ""
        self.token = uuid.uuid4().hex
        self.ready = True
        self.groups = {"my-node-group-01": "group-1"}
        self.api_tokens: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.jobs: dict[str, Item] = {}
        self.deployments: dict[str, Item] = {}
        self.sent: dict[str, Any] = {}
        self.refusals: dict[str, int] = {}
        self._folder = folder
        self._processes: dict[str, PodProcess] = {}
        self._deaths: dict[str, asyncio.Task[None]] = {}

    def environment(self) -> dict[str, str]:
        """The variables that lead here."""
        return {
            "LEPTON_WORKSPACE_ID": "fake",
            "LEPTON_WORKSPACE_TOKEN": self.token,
            "LEPTON_WORKSPACE_URL": self.address + WORKSPACE,
        }

    async def close(self) -> None:
        """End every job."""
        await asyncio.gather(*self._deaths.values())
        for process in self._processes.values():
            await process.stop()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request of the API."""
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"message": "unauthorized"}, status=401)
        kind, *rest = request.match_info["path"].split("/")
        if request.method == "POST":
            return await self._create(kind, await request.json())
        if kind == "jobs":
            return await self._handle_jobs(request, rest)
        if kind == "dedicated-node-groups":
            groups = [{"metadata": {"name": n, "id": i}} for n, i in self.groups.items()]
            return web.json_response(groups)
        return self._handle_item(request, self._items(kind), rest[0])

    def _items(self, kind: str) -> dict[str, Any]:
        return self.deployments if kind == "deployments" else self.secrets

    def _handle_item(self, request: web.Request, items: dict[str, Any], name: str) -> web.Response:
        if name not in items:
            return web.json_response({"message": "not found"}, status=404)
        if request.method == "DELETE":
            del items[name]
            return web.json_response({})
        self._give_address(items[name])
        return web.json_response(items[name])

    async def health(self, request: web.Request) -> web.Response:
        """An endpoint's readiness, for those who have its token."""
        item = self.deployments.get(request.match_info["name"])
        if item is None:
            return web.Response(status=404)
        names = [one["value_from"]["token_name_ref"] for one in item["spec"].get("api_tokens", [])]
        allowed = {f"Bearer {self.api_tokens.get(name)}" for name in names}
        if names and request.headers.get("Authorization") not in allowed:
            return web.Response(status=401)
        return web.Response(status=200 if self.ready else 503)

    async def _create(self, kind: str, body: Any) -> web.Response:
        self.sent[kind] = body
        if kind in self.refusals:
            return web.json_response({"message": "no"}, status=self.refusals[kind])
        if kind == "usersecrets":
            self.secrets |= {one["name"]: one["value"] for one in body}
            return web.json_response({})
        name = body["metadata"]["name"]
        if kind == "deployments":
            address = {"internal_endpoint": "", "external_endpoint": ""}
            self.deployments[name] = body | {"status": {"state": "Starting", "endpoint": address}}
            return web.json_response(self.deployments[name], status=201)
        body["metadata"]["id"] = f"{name}-{uuid.uuid4().hex[:4]}"
        self._start(body)
        return web.json_response(body, status=201)

    async def _handle_jobs(self, request: web.Request, rest: list[str]) -> web.Response:
        if not rest:
            found = [one for one in self.jobs.values() if request.query["q"] in _name(one)]
            for job in found:
                self._sync(job)
            page = found if request.query["page"] == "1" else []
            return web.json_response({"jobs": page, "total": len(found)})
        if rest[0] not in self.jobs:
            return web.json_response({"message": "not found"}, status=404)
        job = self.jobs[rest[0]]
        if len(rest) > 1:
            return self._handle_replicas(job, rest[2:])
        if request.method == "PATCH":
            job["spec"] |= (await request.json())["spec"]
        if request.method == "DELETE":
            del self.jobs[rest[0]]
        self._sync(job)
        return web.json_response(job)

    def _handle_replicas(self, job: Item, rest: list[str]) -> web.Response:
        process = self._processes[job["metadata"]["id"]]
        if not rest:
            return web.json_response([{"id": "r", "metadata": {"id": "r", "name": "r"}}])
        return web.Response(body=process.log.read_bytes(), content_type="text/plain")

    def _start(self, job: Item) -> None:
        identity, container = job["metadata"]["id"], job["spec"]["container"]
        env, data = [], {}
        for one in job["spec"]["envs"]:
            value = one.get("value")
            if value is None:
                value = self.secrets[one["value_from"]["secret_name_ref"]]
            data[one["name"]] = base64.b64encode(value.encode()).decode()
            reference = {"secretKeyRef": {"name": "envs", "key": one["name"]}}
            env.append({"name": one["name"], "valueFrom": reference})
        pod = {"command": container["command"], "env": env, "volumeMounts": []}
        manifest = {"metadata": {}, "spec": {"containers": [pod], "volumes": []}}
        process = PodProcess(manifest, self._folder / identity)
        process.start(config_maps={}, secrets={"envs": {"data": data}})
        self._processes[identity], self.jobs[identity] = process, job
        job["status"] = {"job_name": _name(job), "state": "Starting"}

    def _sync(self, job: Item) -> None:
        identity, status = job["metadata"]["id"], job["status"]
        process = self._processes[identity]
        code = process.exit_code()
        if status["state"] in ("Completed", "Failed", "Stopped"):
            return
        if identity not in self._deaths:
            status["state"] = "Running"
            if code is None and not job["spec"].get("stopped"):
                return
            self._deaths[identity] = asyncio.create_task(process.stop())
        if not self._deaths[identity].done():
            status["state"] = "Stopping" if job["spec"].get("stopped") else "Running"
        elif job["spec"].get("stopped"):
            status["state"] = "Stopped"
        else:
            status["state"] = _STATE_OF_CODE.get(code or 0, "Failed")

    def _give_address(self, item: Any) -> None:
        if isinstance(item, dict):
            address = f"{self.address}/endpoints/{item['metadata']['name']}"
            item["status"]["endpoint"]["external_endpoint"] = address
            item["status"]["state"] = "Ready" if self.ready else "Starting"


@asynccontextmanager
async def running_fake_lepton(folder: Path) -> AsyncIterator[FakeLepton]:
    """A faked workspace, answering on loopback while the block lasts; `folder` has jobs' logs."""
    fake = FakeLepton(folder)
    application = web.Application()
    application.router.add_route("*", WORKSPACE + "/{path:.*}", fake.handle)
    application.router.add_get("/endpoints/{name}/health", fake.health)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        fake.address = f"http://{host}:{port}"
        try:
            yield fake
        finally:
            await fake.close()
    finally:
        await runner.cleanup()


def _name(job: Item) -> str:
    return str(job["metadata"]["name"])
