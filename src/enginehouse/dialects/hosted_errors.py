"""Error replies of hosted APIs, turned into core's errors that name the key, account or limit.

Bodies: {"error": {"message", "type", "param", "code"}} (OpenAI), {"type": "error", "error":
{"type", "message"}} (Anthropic), {"error": {"code": 402, "message", "metadata": {"provider_name",
"raw"}}} (OpenRouter, which also answers 200 with one, and puts one into a choice).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from enginehouse.core.errors import (
    BadRequestError,
    ContextOverflowError,
    ForbiddenError,
    NoCreditError,
    RateLimitedError,
    ServerFaultError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedError,
    WireError,
)
from enginehouse.dialects.openai_replies import excerpt

_OVERLOADED = 529  # Anthropic's
_SEARCHED = 10_000  # characters of a message
_CREDIT = re.compile(
    r"insufficient_quota|billing_(hard_limit|error|not_active)|credit balance|"
    r"insufficient credits|requires more credits",
    re.IGNORECASE,
)
_CONTEXT = re.compile(
    r"maximum context length|context_length_exceeded|context (window|limit)|prompt is too long"
    r"|max_(completion_)?tokens.{0,3} is too large|request_too_large"
    r"|maximum allowed number of output tokens",
    re.IGNORECASE,
)
_MODEL = re.compile(
    r"model_not_found|model.{0,120}(does not exist|not found)|not a valid model"
    r"|not_found_error.{0,20}model|no endpoints found for",
    re.IGNORECASE | re.DOTALL,
)
_PARAMETER = re.compile(
    r"(unsupported|deprecated|not supported|not permitted|cannot both|"
    r"handle the requested parameters)",
    re.IGNORECASE,
)
# a schema that constrained decoding does not support, or no support for schemas or tools at all
_SCHEMA = re.compile(
    r"invalid schema for (response_format|function)"
    r"|(schema|response_format|output_format|output_config).{0,200}(not supported|unsupported)"
    r"|schema is too complex|support tool use",
    re.IGNORECASE | re.DOTALL,
)
_SAMPLING = re.compile(r"temperature|top_p|top_k|requested parameters")
# the status for the type or status name of a streamed error, which has no HTTP status
_STATUS = {
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "overloaded_error": _OVERLOADED,
    "invalid_request_error": 400,
}


@dataclass(frozen=True, kw_only=True)
class HostedErrors:
    """Reads one vendor's errors; the other fields are where its user looks next."""

    vendor: str
    key_variable: str
    keys_page: str
    billing_page: str

    def __call__(  # noqa: C901  one rule after another
        self, status: int, body: bytes, *, retry_after: float | None = None
    ) -> WireError:
        """The error for a reply with a status of 300 or above."""
        error = _Error.read(body)
        said = f"{self.vendor} answered {status}: {error.message}"
        words = f"{error.codes} {error.message[:_SEARCHED]} {error.cause or ''}"
        no_credit = status == HTTPStatus.PAYMENT_REQUIRED or _CREDIT.search(words)
        limited = status in (429, _OVERLOADED) or (status == 503 and retry_after is not None)
        if limited and not no_credit:
            return RateLimitedError(
                said,
                retry_after=retry_after,
                status=status,
                why=error.cause,
                fix="lower --concurrency, ask again later, or ask for a higher limit",
            )
        kind: type[WireError] = BadRequestError
        why, fix = error.cause, None
        if no_credit:
            kind = NoCreditError
            why = "the account has no credit, or its spending limit is reached"
            fix = f"look at {self.billing_page}, or use another account's key"
        elif status == HTTPStatus.REQUEST_TIMEOUT or (status >= 500 and status != 501):
            kind, fix = ServerFaultError, "the vendor's service failed: ask again later"
        elif status in (400, 404) and _SCHEMA.search(words):
            kind = UnsupportedError
            fix = "use only the JSON Schema that the vendor documents, or ask without it"
        elif status == HTTPStatus.UNAUTHORIZED:
            kind = UnauthorizedError
            fix = (
                f"check the {self.vendor} key in {self.key_variable} (or in the variable that "
                f"--api-key-env names); {self.keys_page} lists yours"
            )
        elif status == HTTPStatus.FORBIDDEN:
            kind = ForbiddenError
            fix = (
                "the key is valid but not allowed to do this: use one whose project has access to "
                "this model, from a supported region, or change what was flagged"
            )
        elif _MODEL.search(words):
            kind, fix = UnknownModelError, f"use a model that this {self.vendor} key can access"
        elif _CONTEXT.search(words) or status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            kind, fix = ContextOverflowError, "lower max_tokens or shorten the prompt"
        elif _PARAMETER.search(words) and _SAMPLING.search(words):
            fix = (
                "this model accepts only its own sampling: use --temperature 1 without top_p or "
                "top_k, so that they are left out of the request"
            )
        elif _PARAMETER.search(words):
            fix = "leave that out, or use a model that accepts it"
        elif status in (404, 405) or status < 400:
            fix = "check the address: it should end in the host or in /v1"
        return kind(said, why=why, fix=fix, status=status)

    def in_reply(self, body: bytes) -> WireError | None:
        """The error in a reply, or an event of a stream, that came with status 200."""
        if b'"error"' not in body:
            return None
        error = _Error.read(body)
        return self(error.status, body) if error.found else None


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    """What an error body says; `found` is false if it holds no error, `cause` is the provider's."""

    message: str
    codes: str = ""
    status: int = 500
    cause: str | None = None
    found: bool = False

    @classmethod
    def read(cls, body: bytes) -> _Error:
        error = _find(body)
        if isinstance(error, str):
            return cls(message=error, found=True)
        if not isinstance(error, dict):
            return cls(message=excerpt(body))
        code, kind = error.get("code"), error.get("type")
        status = code if isinstance(code, int) and code >= 400 else None
        names = [name for name in (code, kind, error.get("param")) if isinstance(name, str)]
        message = error.get("message")
        return cls(
            message=message if isinstance(message, str) else excerpt(body),
            codes=" ".join(names),
            status=status or next((_STATUS[name] for name in names if name in _STATUS), 500),
            cause=_cause(error.get("metadata")),
            found=True,
        )


def _find(body: bytes) -> Any:
    """The error object in a body: at its top, or in a choice."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(decoded, dict):
        return None
    choices = decoded.get("choices")
    holders = [decoded, *(choices if isinstance(choices, list) else ())]
    return next((h["error"] for h in holders if isinstance(h, dict) and h.get("error")), None)


def _cause(metadata: Any) -> str | None:
    """What OpenRouter reports about the provider's own error, or about flagged input."""
    if not isinstance(metadata, dict):
        return None
    raw, reasons = metadata.get("raw"), metadata.get("reasons")
    if reasons:
        return f"flagged for {', '.join(map(str, reasons))}"
    if raw is None:
        return None
    text = raw if isinstance(raw, str) else msgspec.json.encode(raw).decode()
    return f"{metadata.get('provider_name', 'the provider')} said: {excerpt(text.encode())}"
