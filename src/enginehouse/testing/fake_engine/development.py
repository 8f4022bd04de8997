"""The endpoints of development mode: weights, their name, caches, pause and sleep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from enginehouse.testing.fake_engine.errors import ApiError
from enginehouse.testing.fake_engine.generation import ENGINE
from enginehouse.testing.fake_engine.model import weights_digest
from enginehouse.testing.fake_engine.requests import parse
from enginehouse.testing.fake_engine.state import SLEEP_TAGS, Engine

_MODES = ("abort", "wait", "keep")


class _Rpc(msgspec.Struct):
    method: str | None = None
    kwargs: dict[str, Any] = {}


class _Version(msgspec.Struct):
    new_version: str


async def collective_rpc(request: web.Request) -> web.Response:
    """POST /collective_rpc, of which only reload_weights does anything."""
    asked: _Rpc = parse(await request.read(), _Rpc)
    if asked.method is None:
        raise ApiError("Missing 'method' in request body", kind="Bad Request")
    if asked.method == "reload_weights":
        _reload(request.app[ENGINE], asked.kwargs.get("weights_path"))
    return web.json_response({"results": [None]})


def _reload(engine: Engine, path: str | None) -> None:
    if path is not None and not Path(path).is_dir():
        raise ApiError(
            f"Call to collective_rpc method failed: no model weights at `{path}`",
            status=500,
            kind="InternalServerError",
        )
    loaded = weights_digest(path or engine.arguments.model)
    # layers of which a part was sent take that for a part of the checkpoint
    engine.weights = f"{loaded}, spoiled" if engine.half_sent else loaded


async def reset_prefix_cache(request: web.Request) -> web.Response:
    """POST /reset_prefix_cache: no success while a request runs."""
    return web.json_response({"success": request.app[ENGINE].running == 0})


async def weight_info(request: web.Request) -> web.Response:
    """GET /weight_info: what the weights are called."""
    return web.json_response({"weight_version": request.app[ENGINE].weight_version})


async def update_weight_version(request: web.Request) -> web.Response:
    """POST /update_weight_version."""
    name = parse(await request.read(), _Version).new_version
    request.app[ENGINE].weight_version = name
    return web.json_response({"success": True, "new_version": name})


async def pause(request: web.Request) -> web.Response:
    """POST /pause?mode=…: answers when nothing runs any more; "keep" is not there."""
    await request.app[ENGINE].pause(abort=_mode(request) == "abort")
    return web.json_response({"status": "paused"})


async def resume(request: web.Request) -> web.Response:
    """POST /resume."""
    request.app[ENGINE].resume()
    return web.json_response({"status": "resumed"})


async def is_paused(request: web.Request) -> web.Response:
    """GET /is_paused."""
    return web.json_response({"is_paused": request.app[ENGINE].paused})


async def sleep(request: web.Request) -> web.Response:
    """POST /sleep?level=…&mode=…: a pause; level 2 forgets the weights, as vLLM does.

    Adapters are forgotten, and listed all the same (vllm#53888).
    """
    engine = request.app[ENGINE]
    level = int(request.query.get("level", "1"))
    await engine.pause(abort=_mode(request) == "abort")
    if level == 2 and "weights" not in engine.sleeping:
        engine.weights = "forgotten"
    engine.lost_adapters |= set(engine.adapters)
    engine.sleeping |= SLEEP_TAGS
    return web.json_response({"status": "sleeping", "level": level})


async def wake_up(request: web.Request) -> web.Response:
    """POST /wake_up?tags=…: requests go on when everything is awake."""
    engine = request.app[ENGINE]
    tags = request.query.getall("tags", [])
    engine.sleeping -= set(tags) or SLEEP_TAGS
    if not engine.sleeping:
        engine.resume()
    status = "sleeping" if engine.sleeping else "awake"
    return web.json_response({"status": status, "tags": tags or None})


async def is_sleeping(request: web.Request) -> web.Response:
    """GET /is_sleeping: true also while it is paused, as vLLM says."""
    engine = request.app[ENGINE]
    return web.json_response({"is_sleeping": engine.paused or bool(engine.sleeping)})


def _mode(request: web.Request) -> str:
    mode = request.query.get("mode", "abort")
    if mode not in _MODES:
        raise ApiError(f"Invalid pause mode: {mode}")
    return mode
