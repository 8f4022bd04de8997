"""Requests to the API of a Lepton workspace: plain data, as leptonai's models describe it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

from enginehouse.core.errors import JobError

_GATEWAY = "https://gateway.dgxc-lepton.nvidia.com"
_TIMEOUT = aiohttp.ClientTimeout(total=120, sock_connect=15)
_LOG_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=15, sock_read=1)
_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Which workspace, and the token for it."""

    workspace: str
    address: str
    token: str = field(repr=False)
    origin: str | None = None


def read_credentials() -> Credentials:
    """Those of `lep login`, or of LEPTON_WORKSPACE_ID and its like, which take precedence.

    Raises JobError if there are none.
    """
    here = os.environ
    record = _record()
    name = here.get("LEPTON_WORKSPACE_ID") or record.get("current_workspace")
    if not name:
        raise JobError(
            "no Lepton workspace is chosen",
            fix="`lep login`, or set LEPTON_WORKSPACE_ID and LEPTON_WORKSPACE_TOKEN",
            kind="no_configuration",
        )
    name, _, token = str(name).partition(":")
    known = (record.get("workspaces") or {}).get(name) or {}
    token = token or here.get("LEPTON_WORKSPACE_TOKEN") or known.get("auth_token") or ""
    address = here.get("LEPTON_WORKSPACE_URL") or known.get("url")
    if not token:
        raise JobError(
            f"there is no token for the Lepton workspace {name}",
            fix="`lep login`, or set LEPTON_WORKSPACE_TOKEN",
            kind="no_configuration",
        )
    return Credentials(
        workspace=name,
        address=(address or f"{_GATEWAY}/api/v2/workspaces/{name}").rstrip("/"),
        token=token,
        origin=here.get("LEPTON_WORKSPACE_ORIGIN_URL") or known.get("workspace_origin_url"),
    )


class Workspace:
    """A connection to one workspace."""

    def __init__(self, credentials: Credentials) -> None:
        headers = {"Authorization": f"Bearer {credentials.token}", "User-Agent": "enginehouse"}
        if credentials.origin:
            headers["origin"] = credentials.origin
        self.credentials = credentials
        self._session = aiohttp.ClientSession(headers=headers, trust_env=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def read(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """What is at a path; None if nothing is. Raises JobError."""
        return await self._json("GET", path, query=query, missing=None)

    async def create(self, path: str, body: Any) -> Any:
        """Create something. Raises JobError, of kind "exists" if it is there already."""
        return await self._json("POST", path, body=body)

    async def change(self, path: str, body: Any) -> Any:
        """Change something; None if it is not there."""
        return await self._json("PATCH", path, body=body, missing=None)

    async def delete(self, path: str) -> None:
        """Delete something; nothing happens if it is not there."""
        await self._json("DELETE", path, missing=None)

    async def jobs(self, *, name: str) -> list[dict[str, Any]]:
        """The jobs whose names contain `name`, with those that have ended."""
        jobs: list[dict[str, Any]] = []
        query = {"job_query_mode": "alive_and_archive", "q": name, "page_size": str(_PAGE)}
        while True:
            query["page"] = str(len(jobs) // _PAGE + 1)
            reply = await self.read("/jobs", query) or []
            page = reply.get("jobs") or [] if isinstance(reply, dict) else reply
            jobs += page
            if len(page) < _PAGE:
                return jobs

    async def log(self, path: str) -> str:
        """A replica's log so far: Lepton streams that of a running one, and ends it never."""
        content = bytearray()
        try:
            async with self._session.get(
                self.credentials.address + path, timeout=_LOG_TIMEOUT
            ) as response:
                if response.status >= 400:
                    return ""  # it has not started
                with suppress(aiohttp.SocketTimeoutError):
                    async for piece in response.content.iter_any():
                        content += piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        return content.decode(errors="replace")

    async def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        missing: Any = ...,
    ) -> Any:
        try:
            async with self._session.request(
                method,
                self.credentials.address + path,
                params=query,
                json=body,
                timeout=_TIMEOUT,
            ) as response:
                if response.status == 404 and missing is not ...:
                    return missing
                if response.status >= 400:
                    raise self._refusal(response.status, path, await response.text())
                if response.content_type == "application/json":
                    return await response.json()
                return None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    def _refusal(self, status: int, path: str, text: str) -> JobError:
        kinds = {401: "unauthorized", 403: "forbidden", 409: "exists"}
        fixes = {
            401: "`lep login` again: the token may have expired",
            403: "ask an administrator of the workspace for the permission",
        }
        return JobError(
            f"Lepton refused the request to {path}",
            why=f"{status}: {text.strip()[:1000]}",
            fix=fixes.get(status, "`enginehouse launch run --dry-run` shows what is sent"),
            kind=kinds.get(status, "invalid" if status < 500 else "unreachable"),
        )

    def _unreachable(self, error: Exception) -> JobError:
        return JobError(
            f"Lepton's API at {self.credentials.address} does not answer",
            why=str(error) or type(error).__name__,
            fix="`lep workspace status` should work from here",
            kind="unreachable",
        )


def _record() -> dict[str, Any]:
    """What `lep login` has written down."""
    folder = os.environ.get("LEPTON_CACHE_DIR") or "~/.cache/lepton"
    try:
        loaded = yaml.safe_load((Path(folder).expanduser() / "workspace_info.yaml").read_text())
    except OSError:
        return {}
    return loaded if isinstance(loaded, dict) else {}
