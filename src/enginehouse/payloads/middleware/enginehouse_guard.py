"""Asks everyone who talks to a vLLM server for a key: ASGI middleware, loaded with --middleware.

Runs inside vLLM's process and imports nothing but the standard library. The environment holds up to
two keys:

- GUARD_ADMIN_KEY opens every path. Only it opens those that change the server, and those that
  this file does not list.
- GUARD_API_KEY, the user's, opens the listed paths: they generate text or look at the server.
  Without it these need no key; with it, only /health needs none.

vLLM's own check of its key covers /v1, /v2, /inference and /cohere only, and cannot tell the two
groups apart.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

API_KEY = "GUARD_API_KEY"
ADMIN_KEY = "GUARD_ADMIN_KEY"
LIVENESS = "/health"
ORDINARY = frozenset(
    {
        *(LIVENESS, "/ping", "/version", "/load", "/metrics"),
        *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
        *("/v1/models", "/tokenize", "/detokenize", "/invocations"),
        *("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"),
        *("/v1/embeddings", "/v2/embed", "/pooling", "/classify"),
        *("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    }
)
ORDINARY_BELOW = (
    "/v1/completions/",
    "/v1/chat/completions/",
    "/v1/messages/",
    "/v1/responses/",
    "/v1/audio/",
)


class Guard:
    """Answers 401 instead of the application where a request lacks the key that its path needs."""

    def __init__(self, app: Application, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._app = app
        self._user = _digest(environment.get(API_KEY))
        self._admin = _digest(environment.get(ADMIN_KEY))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI 3. How long it takes says nothing about a key."""
        if scope["type"] not in ("http", "websocket") or self._admits(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "Unauthorized"})
        else:
            await self._refuse(scope, send)

    def _admits(self, scope: Scope) -> bool:
        headers = dict(reversed(scope["headers"]))  # of several with one name, the first
        path = _route(scope)
        if path == LIVENESS or _is_preflight(scope, headers):
            return True
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = hashlib.sha256(key).digest() if scheme.lower() == b"bearer" else b""
        is_admin, is_user = (
            expected is not None and hmac.compare_digest(given, expected)
            for expected in (self._admin, self._user)
        )
        return is_admin or (_is_ordinary(path) and (is_user or self._user is None))

    async def _refuse(self, scope: Scope, send: Send) -> None:
        message = "the API key is missing or wrong"
        if not _is_ordinary(_route(scope)):
            message = "this path demands the server's administrative key, which only its owner has"
        error = {"message": message, "type": "Unauthorized", "param": None, "code": 401}
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"www-authenticate", b"Bearer"),
        ]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _digest(key: str | None) -> bytes | None:
    return hashlib.sha256(key.encode()).digest() if key else None


def _is_ordinary(path: str) -> bool:
    return path in ORDINARY or path.startswith(ORDINARY_BELOW)


def _route(scope: Scope) -> str:
    """The path as routes know it: below --root-path, where there is one."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _is_preflight(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether it is a browser's question about CORS, which carries no key.

    vLLM's CORS middleware answers these itself, and passes none on to an endpoint.
    """
    return (
        scope.get("method") == "OPTIONS"
        and b"origin" in headers
        and b"access-control-request-method" in headers
    )
