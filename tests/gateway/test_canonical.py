from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.gateway.canonical import CanonicalRequest, read_request

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def read(body: str | dict[str, Any], path: str = COMPLETIONS) -> CanonicalRequest:
    """A request that can be recorded."""
    text = body if isinstance(body, str) else json.dumps(body)
    request = read_request(path, text.encode())
    assert request is not None
    return request


def same(one: str | dict[str, Any], other: str | dict[str, Any]) -> bool:
    """Whether two bodies are the same request."""
    return read(one).digest == read(other).digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1, "b": {"c": 2, "d": 3}}', '{"b":{"d":3,"c":2},\n"a":1}'),
        ('{"prompt": "\\u00fc"}', '{"prompt": "ü"}'),
        ({"prompt": "x", "user": "me"}, {"prompt": "x"}),
        ({"prompt": "x", "stream": False}, {"prompt": "x"}),
        (
            {"prompt": "x", "request_id": "7", "priority": 2, "metadata": {"a": "b"}},
            {"prompt": "x"},
        ),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, {"prompt": "x"}),
    ],
)
def test_what_does_not_decide_the_answer(one, other):
    """Spaces, the order of fields, how text is escaped, and who asks."""
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "x"}, {"prompt": "y"}),
        ({"prompt": ["x", "y"]}, {"prompt": ["y", "x"]}),
        ({"prompt": "x", "model": "a"}, {"prompt": "x", "model": "b"}),
        ({"prompt": "x", "unknown": None}, {"prompt": "x"}),
        ({"prompt": "1"}, {"prompt": 1}),
        ({"prompt": "x", "stream": True}, {"prompt": "x"}),
        (
            {"prompt": "x", "stream": True, "stream_options": {"include_usage": True}},
            {"prompt": "x", "stream": True},
        ),
        # as doubles these are the same
        ('{"seed": 9007199254740993}', '{"seed": 9007199254740992}'),
        ('{"seed": 123456789012345678901234567890}', '{"seed": 123456789012345678901234567891}'),
        ('{"x": 0.1}', '{"x": 0.1000000000000000055511151231257827}'),
        ('{"x": 1e400}', '{"x": 1e401}'),
    ],
)
def test_what_decides_the_answer(one, other):
    """Everything else, down to the digits of numbers."""
    assert not same(one, other)


def test_the_path_counts():
    """The same body asks two endpoints two things."""
    assert read({"x": 1}, CHAT).digest != read({"x": 1}, COMPLETIONS).digest


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"{",
        b'{"x": NaN}',
        b'{"x": "\\ud800"}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"x": %s}' % (b"9" * 5000),
    ],
)
def test_what_cannot_be_recorded(body):
    """It is forwarded as it came, for the engine to judge."""
    assert read_request(COMPLETIONS, body) is None


def test_other_paths_are_not_recorded():
    """What a server says of itself changes."""
    assert read_request("/tokenize", b"{}") is None


@pytest.mark.parametrize(
    ("fields", "repeatable", "seeded"),
    [
        ({}, False, False),
        ({"temperature": 0}, True, False),
        ({"temperature": 0.0, "seed": 3}, True, True),
        ({"temperature": False}, False, False),
        ({"temperature": "0"}, False, False),
        ({"temperature": 1e-9}, False, False),
        ({"temperature": 1, "seed": 0}, False, True),
        ({"seed": None}, False, False),
        ({"seed": -1}, False, False),
        ({"seed": 2**32 - 1}, False, False),
        ({"seed": True}, False, False),
        ({"max_tokens": 0}, True, False),
        ({"max_tokens": 1}, False, False),
        ({"max_tokens": 1, "echo": True}, False, False),
        ({"max_tokens": 1, "echo": True, "logprobs": 0}, True, False),
        ({"max_tokens": 2, "echo": True, "logprobs": 1}, False, False),
        ({"max_tokens": 1, "prompt_logprobs": 1}, True, False),
        ({"max_completion_tokens": 1, "prompt_logprobs": 0}, True, False),
        ({"max_tokens": 1, "max_completion_tokens": 5, "prompt_logprobs": 0}, False, False),
        ({"max_tokens": [1], "prompt_logprobs": 0}, False, False),
    ],
)
def test_which_answers_would_be_the_same_again(fields, repeatable, seeded):
    """Greedy ones, scores of the prompt, and those with a seed that is one."""
    request = read(fields)
    assert (request.repeatable, request.seeded) == (repeatable, seeded)


def test_embeddings_are_the_same_again():
    """Nothing is sampled."""
    assert read({"input": "x"}, "/v1/embeddings").repeatable
