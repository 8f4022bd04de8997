"""A node of a real cluster, in place of the kubelet and the scheduler: pods are processes."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import trustme
from aiohttp import web

from enginehouse.testing.fake_kubernetes.cluster import run_command
from enginehouse.testing.fake_kubernetes.pod_process import PodProcess

_NAME = "here"
_TICK = 0.1
_MERGE = "application/merge-patch+json"


class KubernetesNode:
    """Takes every pod of the namespace `default`, and runs it here."""

    def __init__(self, session: aiohttp.ClientSession, address: str, folder: Path) -> None:
        self._session = session
        self._address = address
        self._folder = folder
        self._pods: dict[str, PodProcess] = {}
        self._names: dict[str, str] = {}  # uid → name

    async def register(self, port: int) -> None:
        """Tell the API server that this node is there, and where its kubelet answers."""
        node = {"metadata": {"name": _NAME}}
        await self._call("POST", "/api/v1/nodes", node)
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }
        await self._call("PATCH", f"/api/v1/nodes/{_NAME}/status", {"status": status})

    async def work(self) -> None:
        """Bind, start, watch and end pods, until cancelled."""
        while True:
            listed = await self._call("GET", "/api/v1/namespaces/default/pods")
            for pod in listed["items"]:
                await self._sync(pod)
            left = {pod["metadata"]["uid"] for pod in listed["items"]}
            for uid in self._pods.keys() - left:
                await self._pods.pop(uid).stop()
            await asyncio.sleep(_TICK)

    async def close(self) -> None:
        """End every pod."""
        for process in self._pods.values():
            await process.stop()

    async def log(self, request: web.Request) -> web.StreamResponse:
        """The kubelet's containerLogs."""
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        process = self._process(request)
        async for content in process.output(follow=request.query.get("follow") == "true"):
            await response.write(content)
        return response

    async def run(self, request: web.Request) -> web.StreamResponse:
        """The kubelet's exec."""
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        await run_command(socket, request.query.getall("command"))
        return socket

    def _process(self, request: web.Request) -> PodProcess:
        names = {name: uid for uid, name in self._names.items()}
        return self._pods[names[request.match_info["pod"]]]

    async def _sync(self, pod: dict[str, Any]) -> None:
        metadata, name = pod["metadata"], pod["metadata"]["name"]
        if (
            pod["status"]["phase"] in ("Succeeded", "Failed")
            and "deletionTimestamp" not in metadata
        ):
            return
        if "nodeName" not in pod["spec"]:
            binding = {"metadata": {"name": name}, "target": {"kind": "Node", "name": _NAME}}
            await self._call("POST", f"{_path(pod)}/binding", binding)
            return
        uid = metadata["uid"]
        process = self._pods.setdefault(uid, PodProcess(pod, self._folder / uid))
        self._names[uid] = name
        if "deletionTimestamp" in metadata:
            await process.stop()
            await self._report(pod, process)
            await self._call("DELETE", _path(pod), {"gracePeriodSeconds": 0})
        elif not process.started:
            await self._start(pod, process)
        elif process.exit_code() is not None and pod["status"]["phase"] == "Running":
            await process.stop()  # what the command left behind goes with its container
            await self._report(pod, process)

    async def _start(self, pod: dict[str, Any], process: PodProcess) -> None:
        config_maps, secrets = [
            {
                item["metadata"]["name"]: item
                for item in (await self._call("GET", f"/api/v1/namespaces/default/{plural}"))[
                    "items"
                ]
            }
            for plural in ("configmaps", "secrets")
        ]
        if process.missing(config_maps=config_maps, secrets=secrets) is None:
            process.start(config_maps=config_maps, secrets=secrets)
            await self._report(pod, process)

    async def _report(self, pod: dict[str, Any], process: PodProcess) -> None:
        code = process.exit_code()
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        state: dict[str, Any] = {"running": {"startedAt": _now()}}
        if code is not None:
            state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
        container = {"name": pod["spec"]["containers"][0]["name"], "state": state}
        container |= {"image": "here", "imageID": "here", "ready": code is None, "restartCount": 0}
        status = {"phase": phase, "startTime": _now(), "containerStatuses": [container]}
        await self._call("PATCH", f"{_path(pod)}/status", {"status": status})

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": _MERGE if method == "PATCH" else "application/json"}
        async with self._session.request(
            method, self._address + path, data=json.dumps(body) if body else None, headers=headers
        ) as response:
            content = await response.json(content_type=None)
            if response.status >= 400 and response.status not in (404, 409):
                raise AssertionError(content)
            return content


@asynccontextmanager
async def running_node(address: str, token: str, folder: Path) -> AsyncIterator[KubernetesNode]:
    """A node of the cluster at `address` while the block lasts; `folder` is its disk."""
    authority = trustme.CA()
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    connector = aiohttp.TCPConnector(ssl=False)  # the API server signs its own certificate
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        node = KubernetesNode(session, address, folder)
        application = web.Application()
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", node.log)
        application.router.add_get("/exec/{namespace}/{pod}/{container}", node.run)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_tls)
        await site.start()
        await node.register(runner.addresses[0][1])
        work = asyncio.create_task(node.work())
        try:
            yield node
        finally:
            work.cancel()
            (end,) = await asyncio.gather(work, return_exceptions=True)
            await node.close()
            await runner.cleanup()
            await asyncio.sleep(0.1)  # a TLS connection ends when its other end has heard of it
            assert isinstance(end, asyncio.CancelledError), end


def _path(pod: dict[str, Any]) -> str:
    return f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
