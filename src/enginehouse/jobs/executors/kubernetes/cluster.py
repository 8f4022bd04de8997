"""Requests to a cluster's API server, over the kubernetes client of the extra `kubernetes`.

Objects are plain data as the API's reference describes them: https://kubernetes.io/docs/reference
"""

from __future__ import annotations

import asyncio
import codecs
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp

from enginehouse.core.errors import JobError

_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=15)
_STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15)
_PROTOCOL = "v4.channel.k8s.io"
_OUTPUT, _ERROR_OUTPUT, _STATUS = 1, 2, 3  # channels of a command's connection
_PAGE = 500


class ApiError(Exception):
    """The API server refused a request; `status` is its HTTP status, `message` its own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Cluster:
    """A connection to one cluster, and one namespace of it. Made by `connect`.

    `source` says where the address and the credentials come from.
    """

    def __init__(self, client: Any, *, namespace: str, source: str) -> None:
        self._client = client
        self.namespace = namespace
        self.source = source

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    @property
    def address(self) -> str:
        """The API server's."""
        return str(self._client.configuration.host)

    def within(self, namespace: str) -> Cluster:
        """The same connection with another namespace."""
        return Cluster(self._client, namespace=namespace, source=self.source)

    async def create(self, group: str, plural: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object. Raises ApiError, and JobError for a server that does not answer."""
        return await self._json("POST", self._path(group, plural), body=body)

    async def read(self, group: str, plural: str, name: str) -> dict[str, Any] | None:
        """The object of that name; None if there is none."""
        try:
            return await self._json("GET", self._path(group, plural, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, group: str, plural: str, *, selector: str) -> list[dict[str, Any]]:
        """The objects with the labels of `selector`."""
        items: list[dict[str, Any]] = []
        query = {"labelSelector": selector, "limit": str(_PAGE)}
        while True:
            page = await self._json("GET", self._path(group, plural), query=query)
            items += page["items"]
            token = page.get("metadata", {}).get("continue")
            if not token:
                return items
            query["continue"] = token

    async def delete(self, group: str, plural: str, name: str, *, uid: str | None = None) -> bool:
        """Delete an object after what it owns; False if there is none with that uid.

        The object is gone once nothing that it owns is left.
        """
        body: dict[str, Any] = {"propagationPolicy": "Foreground"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._json("DELETE", self._path(group, plural, name), body=body)
        except ApiError as error:
            if error.status == 404 or (error.status == 409 and uid is not None):
                return False
            raise
        return True

    async def log(self, pod: str, *, follow: bool) -> AsyncIterator[str]:
        """The output of a pod's first container. Raises ApiError while it has not started."""
        query = {"follow": "true"} if follow else {}
        response = await self._request(
            "GET", self._path("", "pods", pod) + "/log", query=query, limits=_STREAM_TIMEOUT
        )
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        try:
            async for piece in response.content.iter_any():
                yield decoder.decode(piece)
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error
        finally:
            response.close()

    async def run(self, pod: str, command: Sequence[str], *, output: Path) -> None:
        """Run a command in a pod and write its output to a file. Raises JobError if it fails."""
        query = [("command", word) for word in command]
        query += [("stdout", "true"), ("stderr", "true")]
        url = self.address + self._path("", "pods", pod) + "/exec?" + urlencode(query)
        headers = await self._headers("GET", url) | {"sec-websocket-protocol": _PROTOCOL}
        errors, end = bytearray(), b""
        try:
            session = self._session()
            options = self._connection_options()
            async with session.ws_connect(url, headers=headers, max_msg_size=0, **options) as ws:
                with output.open("wb") as file:
                    async for message in ws:
                        if not message.data:
                            continue
                        channel, content = message.data[0], message.data[1:]
                        if channel == _OUTPUT:
                            file.write(content)
                        elif channel == _ERROR_OUTPUT:
                            errors += content
                        elif channel == _STATUS:
                            end = content
        except aiohttp.ClientError as error:
            raise JobError(
                f"cannot run a command in the pod {pod}",
                why=str(error),
                fix=f"`kubectl auth can-i create pods/exec -n {self.namespace}` says whether "
                "you may",
                kind="no_exec",
            ) from error
        if not end or json.loads(end).get("status") != "Success":
            words = errors.decode(errors="replace").strip()
            why = words or (json.loads(end).get("message") if end else "the connection was lost")
            raise JobError(
                f"`{command[0]}` failed in the pod {pod}",
                why=why,
                fix="repeat it; `kubectl exec` with the same command shows more",
                kind="exec_failed",
            )

    def _path(self, group: str, plural: str, name: str | None = None) -> str:
        root = f"/apis/{group}" if group else "/api/v1"
        path = f"{root}/namespaces/{quote(self.namespace)}/{plural}"
        return path if name is None else f"{path}/{quote(name)}"

    async def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        response = await self._request(method, path, query=query, body=body)
        content: dict[str, Any] = await response.json(content_type=None)
        return content

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        limits: aiohttp.ClientTimeout = _TIMEOUT,
    ) -> aiohttp.ClientResponse:
        url = self.address + path + (f"?{urlencode(query)}" if query else "")
        headers = await self._headers(method, url)
        try:
            reply = await self._client.call_api(
                method, url, headers, body=body, _request_timeout=limits
            )
            response: aiohttp.ClientResponse = reply.response
            if response.status >= 400:
                raise ApiError(response.status, _message(await response.read()))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        return response

    def _unreachable(self, error: Exception) -> JobError:
        return JobError(
            f"the cluster's API server at {self.address} does not answer",
            why=str(error) or type(error).__name__,
            fix="check that `kubectl cluster-info` works from here; the address comes from "
            f"{self.source}",
            kind="unreachable",
        )

    async def _headers(self, method: str, url: str) -> dict[str, str]:
        headers: dict[str, str] = {"User-Agent": "enginehouse"}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], url, method, None)
        return headers

    def _session(self) -> aiohttp.ClientSession:
        rest = self._client.rest_client
        if rest.pool_manager is None:
            rest.pool_manager = rest._create_pool_manager()  # noqa: SLF001  # as its own stream does
        session: aiohttp.ClientSession = rest.pool_manager
        return session

    def _connection_options(self) -> dict[str, Any]:
        configuration = self._client.configuration
        options = {"server_hostname": configuration.tls_server_name, "proxy": configuration.proxy}
        return {name: value for name, value in options.items() if value}


async def connect(*, kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    """Connect as kubectl does: with a kubeconfig file, or as the pod that this runs in.

    Raises JobError if the client is not installed, or neither leads to a cluster.
    """
    try:
        from kubernetes.aio import client as api
        from kubernetes.aio import config
    except ImportError as error:
        raise JobError(
            "jobs on Kubernetes need the kubernetes client",
            why=str(error),
            fix="pip install 'enginehouse[kubernetes]'",
            kind="no_client",
        ) from error
    path = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    configuration = api.Configuration()
    try:
        path = os.pathsep.join([str(Path(p).expanduser()) for p in path.split(os.pathsep)])  # noqa: ASYNC240
        is_there = await asyncio.to_thread(_exists, path)
        if not is_there and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            own = await asyncio.to_thread(_own_namespace)
            return Cluster(
                api.ApiClient(configuration),
                namespace=namespace or own,
                source="the pod's service account",
            )
        if not is_there:
            raise FileNotFoundError("there is no such file")  # noqa: TRY301
        loader = await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=path,
            context=context,
            client_configuration=configuration,
            persist_config=False,
        )
    except Exception as error:  # the client raises what its YAML and its plug-ins raise
        raise JobError(
            "no cluster is configured",
            why=f"{path}: {error}",
            fix="`kubectl config get-contexts` lists the contexts; execution.kubeconfig and "
            "execution.context choose one",
            kind="no_configuration",
        ) from error
    current = loader.current_context["context"]
    return Cluster(
        api.ApiClient(configuration),
        namespace=namespace or current.get("namespace") or "default",
        source=path,
    )


def _exists(path: str) -> bool:
    """Whether there is any of the kubeconfig files of `path`."""
    return any(Path(one).exists() for one in path.split(os.pathsep))


def _own_namespace() -> str:
    with suppress(OSError):
        path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
        return path.read_text().strip()
    return "default"


def _message(content: bytes) -> str:
    with suppress(ValueError, AttributeError):
        return str(json.loads(content)["message"])
    return content.decode(errors="replace").strip()
