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

_SOON: Final = "1"  # seconds after which a client may come again

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


def refusal_of(error: EnginehouseError) -> Refusal:
    """How an error is answered: what the engine itself replied passes as it came.

    Not if it refuses our own key, which is not the client's.
    """
    status, kind, code = next(entry[1:] for entry in _KINDS if isinstance(error, entry[0]))
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, RateLimitedError):
        after = _SOON if error.retry_after is None else f"{error.retry_after:.0f}"
        headers = ((b"retry-after", after.encode()),)
    elif isinstance(error, OpenFilesError):
        headers = ((b"retry-after", _SOON.encode()),)
    if isinstance(error, WireError) and not isinstance(error, UnauthorizedError):
        if error.body and error.status is not None and error.status >= 400:
            return Refusal(error.status, error.body, headers)
        status = error.status or status
    parameter = "model" if code == "model_not_found" else None
    body = error_body(said(error), kind=kind, code=code, parameter=parameter)
    return Refusal(status, body, headers)


def said(error: EnginehouseError) -> str:
    """What happened, why, and what to do next, in one line."""
    parts = [error.message, error.why, error.fix]
    return "; ".join(part for part in parts if part)


def event_of(error: EnginehouseError) -> bytes:
    """The last event of a stream that broke."""
    status, kind, code = next(entry[1:] for entry in _KINDS if isinstance(error, entry[0]))
    del status
    return b"data: %b\n\n" % error_body(said(error), kind=kind, code=code or "stream_broken")
