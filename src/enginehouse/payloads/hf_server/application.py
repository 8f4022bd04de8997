"""The HTTP routes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import transformers
from aiohttp import web
from pydantic import Field

from hf_server.bodies import Body, parse, validate
from hf_server.errors import ApiError
from hf_server.replies import Reply
from hf_server.requests import Asked, read_chat, read_completion
from hf_server.rows import Job
from hf_server.service import Service

_LARGEST = 64 << 20  # bytes of a request
_LIVENESS = "/health"
_ADMINISTRATION = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
Name = Annotated[str, Field(min_length=1)]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SERVICE = web.AppKey("service", Service)


class _Tokenize(Body):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


class _Unload(Body):
    lora_name: Name
    lora_int_id: Any = None


class _Load(_Unload):
    lora_path: Name
    load_inplace: Any = None


@dataclass(frozen=True)
class Keys:
    """Digests of the keys that open the server."""

    user: bytes | None
    admin: bytes | None

    def admit(self, path: str, authorization: str) -> bool:
        """Whether a request for `path` may come in; how long that takes says nothing of a key."""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key if scheme.lower() == "bearer" else None) or b""
        is_user, is_admin = (
            expected is not None and hmac.compare_digest(given, expected)
            for expected in (self.user, self.admin)
        )
        if path == _LIVENESS or is_admin:
            return True
        return path not in _ADMINISTRATION and (self.user is None or is_user)


KEYS = web.AppKey("keys", Keys)


def make_application(
    service: Service, *, api_key: str | None, admin_key: str | None
) -> web.Application:
    """The application.

    `admin_key` opens everything and alone loads adapters; without one, adapters cannot be loaded.
    With `api_key`, everything else but /health requires one of the two.
    """
    app = web.Application(middlewares=[_guard], client_max_size=_LARGEST)
    app[SERVICE] = service
    app[KEYS] = Keys(user=_digest(api_key), admin=_digest(admin_key))
    app.add_routes(
        [
            web.get("/health", _health),
            web.get("/version", _version),
            web.get("/metrics", _metrics),
            web.get("/v1/models", _models),
            web.post("/tokenize", _tokenize),
            web.post("/v1/chat/completions", _chat),
            web.post("/v1/completions", _completions),
            web.post("/v1/load_lora_adapter", _load_adapter),
            web.post("/v1/unload_lora_adapter", _unload_adapter),
        ]
    )
    return app


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    if not request.app[KEYS].admit(request.path, request.headers.get("Authorization", "")):
        return _error(ApiError(401, "the API key is missing or wrong"))
    try:
        return await handler(request)
    except ApiError as error:
        return _error(error)
    except web.HTTPException as error:
        return _error(ApiError(error.status, f"{error.reason}: {request.method} {request.path}"))


def _digest(key: str | None) -> bytes | None:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest() if key else None


def _error(error: ApiError) -> web.Response:
    return web.json_response(error.body(), status=error.status)


async def _body(request: web.Request) -> Any:
    return parse(await request.read())


async def _health(request: web.Request) -> web.Response:
    alive = request.app[SERVICE].generator.alive
    return web.Response(status=200 if alive else 503)


async def _version(_: web.Request) -> web.Response:
    return web.json_response({"version": transformers.__version__})


async def _metrics(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    generator = service.generator
    name = json.dumps(service.options.served_model_name)
    values = (
        ("num_requests_running", "gauge", generator.running),
        ("num_requests_waiting", "gauge", generator.waiting),
        ("prompt_tokens_total", "counter", generator.prompt_tokens),
        ("generation_tokens_total", "counter", generator.generation_tokens),
    )
    lines = [
        f"# TYPE hf:{metric} {kind}\nhf:{metric}{{model_name={name}}} {value}"
        for metric, kind, value in values
    ]
    return web.Response(text="\n".join(lines) + "\n")


async def _models(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    base = service.options.served_model_name
    served = [(base, service.options.model, None)]
    served += [(name, path, base) for name, (_, path) in service.adapters.items()]
    data = [
        {
            "id": name,
            "object": "model",
            "created": service.created,
            "owned_by": "enginehouse",
            "root": root,
            "parent": parent,
            "max_model_len": service.max_model_len,
        }
        for name, root, parent in served
    ]
    return web.json_response({"object": "list", "data": data})


async def _tokenize(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    wanted = validate(await _body(request), _Tokenize)
    service.adapter_of(wanted.model)
    ids = await service.tokenize(wanted.prompt, add_special_tokens=wanted.add_special_tokens)
    body = {"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids}
    return web.json_response(body)


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _answer(request, read_chat(await _body(request)))


async def _completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, read_completion(await _body(request)))


async def _answer(request: web.Request, asked: Asked) -> web.StreamResponse:
    service = request.app[SERVICE]
    model = asked.model or service.options.served_model_name
    reply = Reply(asked=asked, model=model, token_text=service.vocabulary.token_text)
    with service.using(asked.model) as adapter:
        job = await service.submit(asked, adapter=adapter)
        try:
            if asked.stream:
                return await _stream(request, job, reply)
            await job.done
        except BaseException:
            service.generator.cancel(job)  # most often the client has gone
            raise
    if job.error is not None:
        raise job.error
    return web.json_response(reply.whole(job))


async def _stream(request: web.Request, job: Job, reply: Reply) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)

    async def send(body: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")

    if reply.asked.messages is not None:
        for row in job.rows:
            await send(reply.first_chunk(row.index))
    while (piece := await job.pieces.get()) is not None:
        if isinstance(piece, ApiError):
            await send(piece.body())
            break
        await send(reply.chunk(piece))
    else:
        if reply.asked.include_usage:
            await send(reply.usage_chunk(job))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _load_adapter(request: web.Request) -> web.Response:
    service = _administered(request)
    wanted = validate(await _body(request), _Load)
    # Shielded: the client may go, the name is taken.
    await asyncio.shield(service.load_adapter(wanted.lora_name, wanted.lora_path))
    return web.Response(text=f"Success: LoRA adapter '{wanted.lora_name}' added successfully.")


async def _unload_adapter(request: web.Request) -> web.Response:
    service = _administered(request)
    wanted = validate(await _body(request), _Unload)
    await asyncio.shield(service.unload_adapter(wanted.lora_name))
    return web.Response(text=f"Success: LoRA adapter '{wanted.lora_name}' removed successfully.")


def _administered(request: web.Request) -> Service:
    service = request.app[SERVICE]
    if not (service.options.enable_lora and service.options.allow_runtime_lora_updating):
        raise ApiError(
            404, "adapters are loaded only with --enable-lora and --allow-runtime-lora-updating"
        )
    return service
