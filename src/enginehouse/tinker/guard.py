"""What every request passes before a route sees it: its id, its key, its size, and the log."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import Final

import orjson
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enginehouse.core.errors import TinkerError

logger = logging.getLogger(__name__)

DOWNLOADS: Final = "/api/v1/downloads/"
"""Where links begin that carry a signature: the SDK follows them without a key."""

_OPEN = frozenset({"/api/v1/healthz"})
# What clients ask for while they wait for work that was accepted; it goes on during a drain.
_FOLLOW_UPS = frozenset(
    {
        "/api/v1/auth/token",
        "/api/v1/cancel_future",
        "/api/v1/client/config",
        "/api/v1/client/dynamic_config",
        "/api/v1/retrieve_future",
        "/api/v1/retrieve_futures",
        "/api/v1/session_heartbeat",
        "/api/v1/telemetry",
    }
)
_LOOPBACK = frozenset({"127.0.0.1", "::1"})


class Guard:
    """An ASGI application around another one.

    `authenticate` gives the user of an API key, or of a request without one, or None. Routes find
    the user in `request.state.user`; None where nobody in particular may ask. Larger bodies than
    `largest_body` bytes are refused while they are read.
    """

    def __init__(
        self,
        application: ASGIApp,
        *,
        authenticate: Callable[[str | None], str | None],
        largest_body: int,
    ) -> None:
        self._application = application
        self._authenticate = authenticate
        self._largest_body = largest_body
        self.draining = False
        """Whether new work is refused, in a way that clients try again."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise AssertionError(f"there is nothing for {scope['type']} here")
        begun = time.monotonic()
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        request_id = headers.get("x-request-id", b"").decode("latin-1")[:64] or uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode("latin-1")),
                ]
            await send(message)

        try:
            state["user"] = self._user(scope, headers)
            self._require_open(scope)
            await self._application(scope, self._limited(headers, receive), answer)
        except TinkerError as refusal:
            await _refuse(scope, refusal, answer)
        except ClientDisconnect:
            pass  # nobody is left to be answered
        except Exception:
            logger.exception("a request failed unexpectedly", extra=_facts(scope))
        finally:
            self._log(scope, status, time.monotonic() - begun)

    def _user(self, scope: Scope, headers: dict[str, bytes]) -> str | None:
        key = headers.get("x-api-key", b"").decode("latin-1")
        if not key:
            kind, _, bearer = headers.get("authorization", b"").decode("latin-1").partition(" ")
            key = bearer.strip() if kind.lower() == "bearer" else ""
        if not key and headers.get("origin"):  # where nobody needs a key, any page could ask
            raise TinkerError(
                "a web page needs an API key here",
                fix="send it as X-API-Key, or as Authorization: Bearer KEY",
                status=401,
            )
        user = self._authenticate(key or None)
        if user is not None:
            return user
        if key:
            raise TinkerError(
                "unknown API key",
                fix="ask the operator for one (`enginehouse tinker keys add NAME` makes it), "
                "and set TINKER_API_KEY to it",
                status=401,
            )
        path = scope["path"]
        if path in _OPEN or path.startswith(DOWNLOADS):
            return None
        if _is_local(scope) and not path.startswith(("/api/", "/v1")):
            return None
        raise TinkerError(
            "the request has no API key",
            fix="send it as X-API-Key, or as Authorization: Bearer KEY; "
            "the SDK sends the one in TINKER_API_KEY",
            status=401,
        )

    def _require_open(self, scope: Scope) -> None:
        path = scope["path"]
        if not self.draining or scope["method"] == "GET" or path in _FOLLOW_UPS:
            return
        if path.endswith("/finish"):
            return
        raise TinkerError(
            "the service is stopping and takes no new work; what it accepted is kept",
            fix="try again after its restart; the SDK does so automatically",
            category="server",
            status=503,
        )

    def _limited(self, headers: dict[str, bytes], receive: Receive) -> Receive:
        """`receive`, which raises TinkerError (413) once the body is too large."""
        too_large = TinkerError(
            f"the body is larger than {self._largest_body} bytes",
            fix="send less at once: fewer datums in one forward_backward, a shorter prompt",
            status=413,
        )
        length = headers.get("content-length", b"")
        if length.isdigit() and int(length) > self._largest_body:
            raise too_large
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._largest_body:
                raise too_large
            return message

        return limited

    @staticmethod
    def _log(scope: Scope, status: int, seconds: float) -> None:
        follow_up = scope["path"] in _FOLLOW_UPS and status < 400
        level = logging.DEBUG if follow_up else logging.INFO
        if logger.isEnabledFor(level):
            facts = _facts(scope) | {"status": status, "ms": round(1000 * seconds, 1)}
            logger.log(level, "request", extra=facts)


def answer_with(error: TinkerError, *, openai: bool) -> tuple[int, dict[str, object]]:
    """The status and the JSON that say what went wrong, as the clients of either API read it."""
    message = str(error)
    if openai:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        return error.status, {"error": {"message": message, "type": kind, "code": error.status}}
    return error.status, {"detail": message, "category": error.category}


async def _refuse(scope: Scope, error: TinkerError, send: Send) -> None:
    status, content = answer_with(error, openai=scope["path"].startswith("/v1"))
    headers = [(b"content-type", b"application/json")]
    if status == 401:  # the SDK then gets itself another login for its key (RFC 6750)
        given = {name for name, _ in scope["headers"]} & {b"x-api-key", b"authorization"}
        challenge = b'Bearer error="invalid_token"' if given else b"Bearer"
        headers.append((b"www-authenticate", challenge))
    if status in {429, 503}:
        headers.append((b"retry-after", b"2"))
    if status == 413:
        headers.append((b"connection", b"close"))  # what is left of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(content)})


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    return client is not None and client[0] in _LOOPBACK


def _facts(scope: Scope) -> dict[str, object]:
    state = scope["state"]
    return {
        "request_id": state["request_id"],
        "user": state.get("user"),
        "method": scope["method"],
        "path": scope["path"],
    }
