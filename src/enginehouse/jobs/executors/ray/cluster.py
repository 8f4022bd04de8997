"""A running Ray cluster, over HTTP: the jobs API of its dashboard, and its list of reservations.

Nothing of Ray is imported: its package would be needed in the cluster's own version.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from enginehouse.core.errors import JobError

_PATIENCE, _CONNECT = 60.0, 10.0  # seconds
_ENDED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
_POLL = 0.2
_MOST = 10_000  # the most rows that Ray's state API gives
_T = TypeVar("_T")


class RayJob(msgspec.Struct, frozen=True, kw_only=True):
    """One of Ray's jobs, as the jobs API describes it."""

    submission_id: str | None = None  # None for a program that connected by itself
    status: str
    message: str | None = None
    error_type: str | None = None
    driver_exit_code: int | None = None
    metadata: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        """Whether its status is final."""
        return self.status in _ENDED


class _Logs(msgspec.Struct):
    logs: str


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """The resources that are reserved on one node."""

    unit_resources: dict[str, float] = {}


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """A placement group."""

    name: str = ""
    state: str
    bundles: list[Bundle] = []

    @property
    def waits(self) -> bool:
        """Whether there are no nodes for it yet."""
        return self.state in ("PENDING", "PREPARED", "RESCHEDULING")


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the cluster."""

    state: str
    resources_total: dict[str, float] = {}


class _Rows(msgspec.Struct, Generic[_T]):
    result: list[_T]


class _Page(msgspec.Struct, Generic[_T]):
    result: _Rows[_T]


class _Answer(msgspec.Struct, Generic[_T]):
    """What the state API answers when it is asked for a list."""

    data: _Page[_T]


def cluster_address(address: str | None) -> str:
    """The address of the jobs API: what is given, or what Ray's variables say.

    Raises JobError.
    """
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        address = address or os.environ.get(name)
    if address is None:
        raise JobError(
            "no Ray cluster is configured",
            fix="set execution.address, or RAY_API_SERVER_ADDRESS, to that of its dashboard, such "
            "as http://HEAD:8265",
            kind="no_address",
        )
    if urlsplit(address).scheme not in ("http", "https"):
        raise JobError(
            f"{address} is not the address of Ray's jobs API",
            why="jobs are submitted over HTTP",
            fix="use that of the dashboard, such as http://HEAD:8265",
            kind="no_address",
        )
    if urlsplit(address).password:
        raise JobError(
            "the address of the Ray cluster contains a password, which would be stored",
            fix="leave it out of RAY_API_SERVER_ADDRESS or RAY_ADDRESS, and set RAY_JOB_HEADERS",
            kind="no_address",
        )
    return address.rstrip("/")


class RayCluster:
    """A cluster's API. An async context manager; methods raise JobError."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def __aenter__(self) -> Self:
        from enginehouse.servers.sessions import open_session

        self._session = open_session(self.address, headers=_headers())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def upload(self, package: str, content: bytes) -> str:
        """Keep a zip file in the cluster; gives the URI by which a job asks for it."""
        await self._ask("PUT", f"api/packages/gcs/{package}", data=content)
        return f"gcs://{package}"

    async def submit(self, request: Mapping[str, Any]) -> None:
        """Submit a job."""
        await self._ask("POST", "api/jobs/", json=request)

    async def job(self, submission: str) -> RayJob | None:
        """A job; None if the cluster knows nothing of it."""
        content = await self._ask("GET", f"api/jobs/{submission}", missing=None)
        return None if content is None else _decode(content, RayJob)

    async def ended(self, submission: str, *, patience: float) -> RayJob | None:
        """A job once it has ended; None if the cluster knows nothing of it. Raises TimeoutError."""
        async with asyncio.timeout(patience):
            while (job := await self.job(submission)) is not None and not job.ended:  # noqa: ASYNC110
                await asyncio.sleep(_POLL)
        return job

    async def jobs(self) -> Sequence[RayJob]:
        """All jobs that the cluster knows of."""
        return _decode(await self._ask("GET", "api/jobs/"), list[RayJob])

    async def logs(self, submission: str) -> str:
        """What a job has printed so far."""
        content = await self._ask("GET", f"api/jobs/{submission}/logs")
        return _decode(content, _Logs).logs

    async def follow(self, submission: str) -> AsyncIterator[str]:
        """What a job has printed, and what it prints until it has ended or the connection."""
        import aiohttp

        path = f"api/jobs/{submission}/logs/tail"
        try:
            async with self._session.ws_connect(path, max_msg_size=0, heartbeat=30) as socket:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error

    async def stop(self, submission: str) -> None:
        """Order a job to end."""
        await self._ask("POST", f"api/jobs/{submission}/stop", missing=None)

    async def reservations(self) -> Mapping[str, Reservation]:
        """The placement groups by name; none if the cluster does not tell."""
        rows = await self._rows("placement_groups", Reservation)
        return {row.name: row for row in rows}

    async def nodes(self) -> Sequence[Node]:
        """The nodes that are alive; none if the cluster does not tell."""
        return [row for row in await self._rows("nodes", Node) if row.state == "ALIVE"]

    async def _rows(self, table: str, kind: type[_T]) -> Sequence[_T]:
        try:
            content = await self._ask("GET", f"api/v0/{table}?detail=1&limit={_MOST}")
            return msgspec.json.decode(content, type=_Answer[kind]).data.result.result  # type: ignore[valid-type]
        except (JobError, msgspec.DecodeError):  # it only explains why a job waits
            return []

    async def _ask(
        self, method: str, path: str, *, missing: bytes | None = b"", **body: Any
    ) -> Any:
        """The content of an answer; `missing`, if that is None, for one that says 404."""
        import aiohttp

        patience = aiohttp.ClientTimeout(total=_PATIENCE, connect=_CONNECT)
        try:
            async with self._session.request(method, path, timeout=patience, **body) as reply:
                content = await reply.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error
        if reply.status == 404 and missing is None:
            return None
        if reply.status >= 400:
            raise self._refusal(reply.status, content.decode(errors="replace"))
        return content

    def _unreachable(self, error: BaseException) -> JobError:
        return JobError(
            f"the Ray cluster at {self.address} does not answer",
            why=str(error) or type(error).__name__,
            fix="check that it runs, and that its dashboard's port can be reached from here "
            "(`ssh -L` or `kubectl port-forward` forward one)",
            kind="unreachable",
        )

    def _refusal(self, status: int, text: str) -> JobError:
        if status in (401, 403):
            return JobError(
                f"the Ray cluster at {self.address} refuses access (HTTP {status})",
                why=text,
                fix="for a cluster with token authentication, set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN; for a proxy, RAY_JOB_HEADERS",
                kind="unauthorized",
            )
        lines = text.strip().splitlines() or [f"HTTP {status}"]
        if status == 404:
            return JobError(
                f"the server at {self.address} does not have Ray's jobs API",
                why=lines[-1],
                fix="use the address of the dashboard, http://HEAD:8265 by default; a cluster has "
                'one if it was installed as "ray[default]"',
                kind="no_jobs_api",
            )
        return JobError(
            f"the Ray cluster at {self.address} rejected the request (HTTP {status})",
            why=next((line for line in reversed(lines) if len(line) > 1), lines[-1]),
            fix="the dashboard's log on the head node (dashboard_JobHead.log) has more",
            kind="refused",
        )


def _decode(content: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise JobError(
            "a reply from the Ray cluster could not be read",
            why=str(error),
            fix="its version may be too new or too old; see docs/launch-ray.md",
            kind="unreadable",
        ) from error


def _headers() -> Mapping[str, str]:
    """What Ray's own client would send to prove who asks. Raises JobError."""
    headers = {}
    if text := os.environ.get("RAY_JOB_HEADERS"):
        try:
            headers = msgspec.json.decode(text, type=dict[str, str])
        except msgspec.DecodeError as error:
            raise JobError(
                "RAY_JOB_HEADERS cannot be read",
                why=str(error),
                fix='it must be a JSON object of strings, such as {"Authorization": "Bearer …"}',
                kind="unauthorized",
            ) from error
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        headers["Authorization"] = f"Bearer {_token()}"
    return headers


def _token() -> str:
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    try:
        return path.read_text().strip()
    except OSError as error:
        raise JobError(
            f"there is no token for the Ray cluster in {path}",
            why=error.strerror,
            fix="RAY_AUTH_MODE is token: set RAY_AUTH_TOKEN, or write the token to that file",
            kind="unauthorized",
        ) from error
