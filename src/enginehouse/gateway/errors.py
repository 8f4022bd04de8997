"""Errors as clients of the OpenAI API expect them."""

from __future__ import annotations

from typing import Final

import msgspec

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    EnginehouseError,
    EngineKilledError,
    ModelError,
    OpenFilesError,
    RateLimitedError,
    RequestTimeoutError,
    ServerError,
    UnauthorizedError,
    UnknownModelError,
    UnknownNameError,
    UnsupportedError,
    WireError,
)
from enginehouse.gateway.http_server import Refusal

_SOON: Final = "1"  # seconds after which a client may ask again

# The first that fits decides: status, type, code.
_KINDS: Final[tuple[tuple[type[EnginehouseError], int, str, str | None], ...]] = (
    # 4xx: OpenAI's library would ask again otherwise, Inspect for ever, and kill another engine
    (EngineKilledError, 422, "invalid_request_error", "engine_killed"),
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (UnknownNameError, 404, "invalid_request_error", "model_not_found"),
    (UnsupportedError, 404, "invalid_request_error", "unsupported"),
    (UnauthorizedError, 502, "server_error", "engine_refuses_key"),
    (BadRequestError, 400, "invalid_request_error", None),
    (RateLimitedError, 429, "rate_limit_error", "engine_is_busy"),
    (RequestTimeoutError, 504, "server_error", "engine_timeout"),
    (WireError, 502, "server_error", "engine_failed"),
    (ConfigurationError, 400, "invalid_request_error", None),
    (ModelError, 400, "invalid_request_error", None),
    (OpenFilesError, 503, "server_error", "no_open_files"),
    (ServerError, 503, "server_error", "engine_gone"),
    (EnginehouseError, 500, "server_error", None),
)


def error_body(
    message: str, *, kind: str, code: str | None = None, parameter: str | None = None
) -> bytes:
    """An error in the form of the OpenAI API."""
    error = {"message": message, "type": kind, "param": parameter, "code": code}
    return msgspec.json.encode({"error": error})


FAILED: Final = Refusal(
    500, error_body("the gateway failed to handle this request", kind="server_error")
)
STOPPING: Final = Refusal(
    503,
    error_body(
        "the gateway is stopping and did not finish this answer; retry when it is back",
        kind="server_error",
        code="gateway_stopping",
    ),
)


def refusal_of(error: EnginehouseError) -> Refusal:
    """The answer to an error: the engine's own reply, unchanged, if there is one.

    The exception is an engine that refuses our key, which says nothing about the client's.
    """
    status, kind, code = next(entry[1:] for entry in _KINDS if isinstance(error, entry[0]))
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, RateLimitedError):
        after = _SOON if error.retry_after is None else f"{error.retry_after:.0f}"
        headers = ((b"retry-after", after.encode()),)
    elif isinstance(error, OpenFilesError):
        headers = ((b"retry-after", _SOON.encode()),)
    if isinstance(error, WireError) and not isinstance(error, UnauthorizedError):
        given = error.status or 0
        if given >= 400 and error.body:
            return Refusal(given, error.body, headers)
        status = given if given >= 400 else status
    parameter = "model" if code == "model_not_found" else None
    body = error_body(said(error), kind=kind, code=code, parameter=parameter)
    return Refusal(status, body, headers)


def said(error: EnginehouseError) -> str:
    """What happened, why, and what to do next, in one line."""
    parts = [error.message, error.why, error.fix]
    return "; ".join(part for part in parts if part)


def last_event(body: bytes) -> bytes:
    """An error's body as the last event of a stream that broke."""
    return b"data: %b\n\n" % body


def event_of(error: EnginehouseError) -> bytes:
    """The last event of a stream that an error broke."""
    _, kind, code = next(entry[1:] for entry in _KINDS if isinstance(error, entry[0]))
    return last_event(error_body(said(error), kind=kind, code=code or "stream_broken"))
