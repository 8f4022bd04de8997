"""What --middleware names, in front of the fake: the classes that a real vLLM would load."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from types import SimpleNamespace
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


def load_middlewares(paths: Sequence[str]) -> list[Middleware]:
    """Those that `paths` (module.Class) name, the outermost first: as in vLLM, the last one."""
    return [_adapted(path) for path in reversed(paths)]


def _adapted(path: str) -> Middleware:
    """An ASGI class as an aiohttp middleware; it sees the head of a request, and may refuse it."""
    module, _, name = path.rpartition(".")
    make: Callable[[Application], Application] = getattr(importlib.import_module(module), name)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        admitted = False
        sent: list[Message] = []

        async def inner(*_: Any) -> None:
            nonlocal admitted
            admitted = True

        async def receive() -> Message:
            return {"type": "http.request", "body": await request.read(), "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await make(inner)(_scope(request), receive, send)
        return await handler(request) if admitted else _response(sent)

    return middleware


def _scope(request: web.Request) -> Message:
    return {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "app": _APPLICATION,
    }


class _EngineClient:
    """vLLM's, as far as middleware asks it."""

    async def list_loras(self) -> list[int]:
        """Adapters by number; the fake holds none that its API has no name for."""
        return []


_APPLICATION = SimpleNamespace(
    state=SimpleNamespace(
        openai_serving_models=SimpleNamespace(lora_requests={}), engine_client=_EngineClient()
    )
)


def _response(messages: Sequence[Message]) -> web.Response:
    start, *parts = messages
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    body = b"".join(part.get("body", b"") for part in parts)
    return web.Response(status=start["status"], headers=headers, body=body)
