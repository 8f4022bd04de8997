"""The fake's routes, and what vLLM does around all of them: API key, errors, access log."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from enginehouse.testing.fake_engine import administration as admin
from enginehouse.testing.fake_engine import development, weight_transfer
from enginehouse.testing.fake_engine.errors import ApiError
from enginehouse.testing.fake_engine.generation import ENGINE, chat, completions
from enginehouse.testing.fake_engine.middleware import load_middlewares
from enginehouse.testing.fake_engine.state import Engine

_GUARDED = ("/v1", "/v2", "/inference")


def make_application(
    engine: Engine, *, environment: Mapping[str, str], middlewares: Sequence[Middleware] = ()
) -> web.Application:
    """The fake as an application; endpoints that vLLM switches on by environment are too."""
    keys = engine.arguments.api_key or [environment.get("VLLM_API_KEY", "")]
    application = web.Application(
        middlewares=[
            _access_log,
            *([_recorded(path)] if (path := environment.get("VLLM_FAKE_REQUESTS")) else []),
            *load_middlewares(engine.arguments.middleware),
            _guard({key for key in keys if key}),
            _errors,
            *middlewares,
        ],
        client_max_size=2**28,
    )
    application[ENGINE] = engine
    routes = [
        web.get("/health", admin.health),
        web.get("/version", admin.version),
        web.get("/metrics", admin.metrics),
        web.get("/v1/models", admin.models),
        web.post("/v1/chat/completions", chat),
        web.post("/v1/completions", completions),
        web.post("/tokenize", admin.tokenize),
        web.post("/detokenize", admin.detokenize),
    ]
    if environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0") not in ("", "0"):
        routes += [
            web.post("/v1/load_lora_adapter", admin.load_adapter),
            web.post("/v1/unload_lora_adapter", admin.unload_adapter),
        ]
    if environment.get("VLLM_SERVER_DEV_MODE", "0") not in ("", "0"):
        routes += [
            web.post("/collective_rpc", development.collective_rpc),
            web.post("/reset_prefix_cache", development.reset_prefix_cache),
            web.get("/weight_info", development.weight_info),
            web.post("/update_weight_version", development.update_weight_version),
            web.post("/pause", development.pause),
            web.post("/resume", development.resume),
            web.get("/is_paused", development.is_paused),
            web.post("/sleep", development.sleep),
            web.post("/wake_up", development.wake_up),
            web.get("/is_sleeping", development.is_sleeping),
            *(
                web.post(f"/{handler.__name__}", handler)
                for handler in (
                    weight_transfer.init_weight_transfer_engine,
                    weight_transfer.start_weight_update,
                    weight_transfer.update_weights,
                    weight_transfer.finish_weight_update,
                )
            ),
            web.get("/get_world_size", weight_transfer.get_world_size),
        ]
    application.add_routes(routes)
    return application


@web.middleware
async def _access_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    if not request.app[ENGINE].arguments.disable_uvicorn_access_log:
        host, port = request.transport.get_extra_info("peername")[:2] if request.transport else "??"
        reason = HTTPStatus(response.status).phrase
        line = f'{host}:{port} - "{request.method} {request.path_qs} HTTP/1.1"'
        # uvicorn writes this line with logging, which loses it on a full disk and goes on.
        with suppress(OSError):
            sys.stdout.write(f"INFO:     {line} {response.status} {reason}\n")
            sys.stdout.flush()
    return response


def _recorded(path: str) -> Middleware:
    """Appends what arrives to a file, before anything is said about it."""

    @web.middleware
    async def recorded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "POST":
            line = {"path": request.path, "body": json.loads(await request.read() or b"null")}
            _append(Path(path), json.dumps(line))
        return await handler(request)

    return recorded


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _guard(keys: set[str]) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if keys and request.path.startswith(_GUARDED):
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or key not in keys:
                return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    return guard


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.body(), status=error.status)
    except web.HTTPException as error:
        if error.status not in (404, 405):
            raise
        return web.json_response({"detail": error.reason}, status=error.status)
