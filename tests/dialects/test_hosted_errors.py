"""Every vendor's refusals, in their own words, as errors that say what to do next."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

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
from enginehouse.dialects import anthropic_messages
from enginehouse.dialects.openai_hosted import OPENAI_CHAT, OPENROUTER_CHAT

READERS = {
    "openai": OPENAI_CHAT.errors,
    "openrouter": OPENROUTER_CHAT.errors,
    "anthropic": anthropic_messages.errors,
}


def openai(message: str, kind: str = "invalid_request_error", code: str | None = None) -> Any:
    """OpenAI's body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic(kind: str, message: str) -> Any:
    """Anthropic's."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def openrouter(code: int, message: str, **metadata: Any) -> Any:
    """OpenRouter's."""
    return {"error": {"code": code, "message": message, "metadata": metadata}}


CASES: list[tuple[str, int, Any, type[WireError], str]] = [
    ("openai", 401, openai("Incorrect API key provided"), UnauthorizedError, "OPENAI_API_KEY"),
    (
        "openai",
        403,
        openai("Country, region, or territory not supported", code="unsupported_country_region"),
        ForbiddenError,
        "region",
    ),
    (
        "openai",
        429,
        openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
        NoCreditError,
        "billing",
    ),
    (
        "openai",
        429,
        openai("Rate limit reached for gpt-x", "requests", "rate_limit_exceeded"),
        RateLimitedError,
        "--concurrency",
    ),
    (
        "openai",
        404,
        openai("The model `gpt-0` does not exist", code="model_not_found"),
        UnknownModelError,
        "use a model",
    ),
    (
        "openai",
        400,
        openai("Input is too long", code="context_length_exceeded"),
        ContextOverflowError,
        "max_tokens",
    ),
    (
        "openai",
        400,
        openai(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the "
            "default (1) value is supported.",
            code="unsupported_value",
        ),
        BadRequestError,
        "--temperature 1",
    ),
    (
        "openai",
        400,
        openai("Unsupported parameter: 'logprobs' is not supported with this model."),
        BadRequestError,
        "leave that out",
    ),
    (
        "openai",
        400,
        openai(
            "Invalid schema for response_format 'answer': In context=('properties', 'city'), "
            "'additionalProperties' is required to be supplied and to be false."
        ),
        UnsupportedError,
        "the vendor documents",
    ),
    (
        "openai",
        400,
        openai(
            "Invalid parameter: 'response_format' of type 'json_schema' is not supported with "
            "this model."
        ),
        UnsupportedError,
        "ask without",
    ),
    (
        "anthropic",
        400,
        anthropic(
            "invalid_request_error",
            "output_config.format.schema: For 'integer' type, property 'minimum' is not supported",
        ),
        UnsupportedError,
        "the vendor documents",
    ),
    (
        "openrouter",
        404,
        openrouter(404, "No endpoints found that support tool use."),
        UnsupportedError,
        "ask without",
    ),
    ("openai", 500, openai("The server had an error", "server_error"), ServerFaultError, "later"),
    ("openai", 408, openai("Request timed out"), ServerFaultError, "later"),
    ("openai", 404, b"<html>nginx</html>", BadRequestError, "check the address"),
    (
        "anthropic",
        401,
        anthropic("authentication_error", "invalid x-api-key"),
        UnauthorizedError,
        "ANTHROPIC_API_KEY",
    ),
    (
        "anthropic",
        403,
        anthropic("permission_error", "Your API key does not have permission"),
        ForbiddenError,
        "project",
    ),
    (
        "anthropic",
        404,
        anthropic("not_found_error", "model: claude-0"),
        UnknownModelError,
        "use a model",
    ),
    (
        "anthropic",
        400,
        anthropic("invalid_request_error", "Your credit balance is too low to access the API."),
        NoCreditError,
        "billing",
    ),
    (
        "anthropic",
        400,
        anthropic("invalid_request_error", "prompt is too long: 209000 tokens > 200000 maximum"),
        ContextOverflowError,
        "shorten",
    ),
    (
        "anthropic",
        400,
        anthropic(
            "invalid_request_error",
            "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        ),
        ContextOverflowError,
        "shorten",
    ),
    (
        "anthropic",
        413,
        anthropic("request_too_large", "Request exceeds the maximum size"),
        ContextOverflowError,
        "shorten",
    ),
    (
        "anthropic",
        400,
        anthropic("invalid_request_error", "`temperature` is deprecated for this model."),
        BadRequestError,
        "--temperature 1",
    ),
    (
        "anthropic",
        529,
        anthropic("overloaded_error", "Overloaded"),
        RateLimitedError,
        "--concurrency",
    ),
    ("anthropic", 500, anthropic("api_error", "Internal server error"), ServerFaultError, "later"),
    (
        "openrouter",
        401,
        openrouter(401, "User not found."),
        UnauthorizedError,
        "OPENROUTER_API_KEY",
    ),
    (
        "openrouter",
        402,
        openrouter(402, "Insufficient credits. Add more credits and retry."),
        NoCreditError,
        "settings/credits",
    ),
    (
        "openrouter",
        403,
        openrouter(403, "Input flagged", reasons=["violence"], provider_name="Acme"),
        ForbiddenError,
        "flagged for violence",
    ),
    (
        "openrouter",
        400,
        openrouter(400, "x/y is not a valid model ID"),
        UnknownModelError,
        "use a model",
    ),
    (
        "openrouter",
        404,
        openrouter(404, "No endpoints found for x/y."),
        UnknownModelError,
        "use a model",
    ),
    (
        "openrouter",
        404,
        openrouter(404, "No endpoints found that can handle the requested parameters."),
        BadRequestError,
        "--temperature 1",
    ),
    (
        "openrouter",
        400,
        openrouter(
            400,
            "Provider returned error",
            provider_name="Acme",
            raw='{"error": "This model\'s maximum context length is 8192 tokens."}',
        ),
        ContextOverflowError,
        "Acme said",
    ),
    ("openrouter", 502, openrouter(502, "Provider returned error"), ServerFaultError, "later"),
]


@pytest.mark.parametrize(("vendor", "status", "body", "kind", "says"), CASES)
def test_each_refusal_is_its_own_error_with_the_next_step(
    vendor: str, status: int, body: Any, kind: type[WireError], says: str
):
    """And names the vendor and the status."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    error = READERS[vendor](status, raw)
    assert type(error) is kind
    assert error.status == status
    assert says in str(error)
    assert READERS[vendor].vendor in str(error)


def test_a_503_with_a_time_is_a_refusal_for_now():
    """Without one, it is a fault."""
    read = READERS["openrouter"]
    assert isinstance(read(503, b"{}", retry_after=3.0), RateLimitedError)
    assert isinstance(read(503, b"{}"), ServerFaultError)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"message": {"content": "an \\"error\\": {} in the text"}}]}',
        b'{"choices": [{"message": {"content": "x"}, "finish_reason": "error"}], "error": null}',
        b'not JSON, with an "error"',
        b'[1, "error"]',
    ],
)
def test_what_holds_no_error_is_no_error(body: bytes):
    """A model may well write about errors."""
    assert READERS["openrouter"].in_reply(body) is None
