"""Error replies of OpenAI-compatible servers, turned into core's errors.

Bodies seen: {"error": {"message", "type", "param", "code"}} (vLLM, OpenAI), {"error": "text"}
(vLLM's API key guard), {"detail": …} (FastAPI), {"object": "error", "message"} (old vLLM), text.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from enginehouse.core.errors import (
    BadRequestError,
    ContextOverflowError,
    RateLimitedError,
    ServerFaultError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedError,
    WireError,
)
from enginehouse.dialects.openai_replies import excerpt

_SEARCHED = 10_000  # characters of a message: some servers append the whole request
_CONTEXT = re.compile(
    r"maximum context length|max_model_len|context_length_exceeded|exceeds the context"
    r"|longer than the model's context|exceeds the available context size"
    r"|max_completion_tokens is too large",
    re.IGNORECASE,
)
_UNKNOWN_MODEL = re.compile(
    r"model.{0,300}?(does not exist|not found|not exist)|model_not_found"
    r"|adapter.{0,300}?never been loaded",
    re.IGNORECASE | re.DOTALL,
)

# The server was not started for this, or its constrained decoding does not support it (vLLM 0.32,
# llama-server, OpenAI): asking in another way may work.
_UNSUPPORTED = re.compile(
    r"tool[ _]choice.{0,80} requires.{0,80}--tool-call-parser|tools param requires --jinja"
    r"|features not supported by|Invalid schema for response_format|failed to parse grammar"
    r"|Unsupported JSON schema|Error compiling (json|grammar)"
    r"|Failed to convert .{0,80} to .{0,40}grammar",
    re.IGNORECASE | re.DOTALL,
)


def error_reply(status: int, body: bytes, *, retry_after: float | None = None) -> WireError:
    """The error for a reply with a status of 300 or above."""
    message = _message(body)
    searched = message[:_SEARCHED]
    said = f"the server answered {status}: {message}"
    if status == 429 or (status == 503 and retry_after is not None):
        return RateLimitedError(said, retry_after=retry_after, status=status)
    kind: type[WireError] = BadRequestError
    fix = None
    if status in (400, 500, 501) and _UNSUPPORTED.search(searched):
        kind = UnsupportedError
        fix = "start the server with the option that it names, or ask without it"
    elif status >= 500 and status != 501:
        kind, fix = ServerFaultError, "the server's log shows the cause"
    elif status in (401, 403):
        kind, fix = UnauthorizedError, "use the API key that the server was started with"
    elif _UNKNOWN_MODEL.search(searched) and status in (400, 404):
        kind, fix = UnknownModelError, "use a name that the server lists under /v1/models"
    elif _CONTEXT.search(searched):
        kind = ContextOverflowError
        fix = "lower max_tokens, shorten the prompt, or raise max_model_len"
    elif status in (404, 405) or status < 400:
        fix = "check the address: it should end in the host or in /v1"
    return kind(said, fix=fix, status=status)


def stream_error(data: bytes) -> WireError | None:
    """The error in one event of a stream, None if there is none."""
    if b'"error"' not in data:
        return None
    decoded = _decode(data)
    error = decoded.get("error") if isinstance(decoded, dict) else None
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return error_reply(code if isinstance(code, int) and code >= 400 else 500, data)


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _message(body: bytes) -> str:
    decoded = _decode(body)
    if isinstance(decoded, dict):
        error = decoded.get("error", decoded)
        if isinstance(error, str):
            return error
        if isinstance(error, dict):
            message = error.get("message") or error.get("detail")
            if isinstance(message, str):
                code = error.get("code")
                return f"{message} ({code})" if isinstance(code, str) else message
    return excerpt(body)
