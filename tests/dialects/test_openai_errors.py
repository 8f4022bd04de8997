"""Error replies, as servers really word them."""

from __future__ import annotations

import json
from typing import Any

import pytest

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
from enginehouse.dialects.openai_errors import error_reply, stream_error


def vllm(message: str, code: int = 400) -> bytes:
    """A body as vLLM writes it."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": code}
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        (404, vllm("The model `x` does not exist. Valid aliases: m.", 404), UnknownModelError),
        (404, b'{"object":"error","message":"The model `x` does not exist."}', UnknownModelError),
        (
            400,
            vllm("max_tokens=9 cannot be greater than max_model_len=4. Please request fewer"),
            ContextOverflowError,
        ),
        (400, vllm("This model's maximum context length is 2048 tokens."), ContextOverflowError),
        (401, b'{"error":"Unauthorized"}', UnauthorizedError),
        (403, b"forbidden", UnauthorizedError),
        (400, vllm("n must be at least 1, got 0."), BadRequestError),
        (
            400,
            vllm('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'),
            UnsupportedError,
        ),
        (400, vllm('tool_choice="required" requires --tool-call-parser to be'), UnsupportedError),
        (
            400,
            vllm("The provided JSON schema contains features not supported by xgrammar."),
            UnsupportedError,
        ),
        (500, vllm("tools param requires --jinja flag", 500), UnsupportedError),
        (404, b'{"detail":"Not Found"}', BadRequestError),
        (307, b"", BadRequestError),
        (501, vllm("not implemented", 501), BadRequestError),
        (429, b"slow down", RateLimitedError),
        (500, vllm("EngineCore encountered an issue", 500), ServerFaultError),
        (502, b"<html>Bad Gateway</html>", ServerFaultError),
        (503, b"", ServerFaultError),
    ],
)
def test_which_error_it_is(status: int, body: bytes, wanted: type[WireError]):
    """The class is exact, the status is kept, and only what may pass is retryable."""
    error = error_reply(status, body)
    assert type(error) is wanted
    assert error.status == status
    assert str(status) in error.message
    passing = status in (429, 500, 502, 503) and wanted is not UnsupportedError
    assert error.retryable == passing


def test_retry_after_is_kept():
    """A 503 that names a time is a rate limit, not a fault."""
    error = error_reply(503, b"", retry_after=7.0)
    assert isinstance(error, RateLimitedError)
    assert error.retry_after == 7.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (vllm("too hot"), "too hot"),
        (b'{"error":"Unauthorized"}', "Unauthorized"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"error":{"message":"gone","code":"model_gone"}}', "gone (model_gone)"),
        (b"plain words", "plain words"),
        (b"", "(empty)"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"error":{"message":["odd"]}}', '{"error"'),
        (b"[1]", "[1]"),
    ],
)
def test_the_servers_own_words_are_shown(body: bytes, message: str):
    """Whatever the body's shape, what it says is in the message."""
    assert message in error_reply(418, body).message


def test_an_event_without_an_error_is_none():
    """Nulls and mere mentions are no errors."""
    cases: list[Any] = [{"choices": []}, {"error": None, "choices": []}, ["error"]]
    for case in cases:
        assert stream_error(json.dumps(case).encode()) is None
