"""A hub in the test's own process whose only data set is gated, for the hub's own libraries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

GATED = "someone/something"
_REVISION = "1" * 40


async def _describe(request: web.Request) -> web.Response:
    """GET /api/datasets/NAME, which the hub answers for gated ones, too."""
    if _name(request) != GATED:
        return _refusal(401, "RepoNotFound", "Repository not found")
    siblings = [{"rfilename": "README.md"}, {"rfilename": "data/test.jsonl"}]
    return web.json_response(
        {"id": GATED, "sha": _REVISION, "gated": "manual", "private": False, "siblings": siblings}
    )


async def _resolve(request: web.Request) -> web.Response:
    """GET of a file: nobody has access, whatever token they have."""
    if _name(request) != GATED:
        return _refusal(401, "RepoNotFound", "Repository not found")
    status = 403 if "Authorization" in request.headers else 401
    return _refusal(status, "GatedRepo", f"Access to dataset {GATED} is restricted.")


def _name(request: web.Request) -> str:
    return "{owner}/{name}".format(**request.match_info)


def _refusal(status: int, code: str, message: str) -> web.Response:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    return web.json_response({"error": message}, status=status, headers=headers)


@asynccontextmanager
async def gated_hub() -> AsyncIterator[str]:
    """What HF_ENDPOINT is set to."""
    application = web.Application()
    for path in ("", "/revision/{revision}"):
        application.router.add_get("/api/datasets/{owner}/{name}" + path, _describe)
    application.router.add_get("/api/datasets/{owner}/{name}/{rest:.*}", _resolve)
    application.router.add_get("/datasets/{owner}/{name}/resolve/{rest:.*}", _resolve)
    async with TestServer(application) as server:
        yield str(server.make_url("")).rstrip("/")
